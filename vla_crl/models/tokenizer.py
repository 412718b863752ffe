"""Word-level tokenizer over a vocabulary that travels with the checkpoint."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from vla_crl.errors import ConfigError, SpecError

PADDING = "[PAD]"
UNKNOWN = "[UNK]"
PADDING_ID = 0
UNKNOWN_ID = 1


class WordTokenizer:
    """Lower-cased words and punctuation marks to numbers.

    Unknown words become `[UNK]`; a warning names them, once for every text.
    """

    def __init__(self, vocabulary: Sequence[str], max_words: int) -> None:
        """Build the tokenizer.

        Args:
            vocabulary: Words without the two special tokens; a word's order is its number.
            max_words: Length every text is padded to.

        Raises:
            ConfigError: The same word twice, or a special token among the words.
        """
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        words = [PADDING, UNKNOWN, *vocabulary]
        if len(set(words)) != len(words):
            repeated = sorted({word for word in words if words.count(word) > 1})
            raise ConfigError(f"vocabulary: {repeated} given more than once; remove the copies")
        self.max_words = max_words
        self.num_words = len(words)
        ids = {word: index for index, word in enumerate(words)}
        self._tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
        self._tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
        self._tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
        self._rows: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return word numbers [N, max_words] int64 and their mask [N, max_words] bool.

        Raises:
            SpecError: A text has no word, or more than `max_words`; nothing is cut off silently.
        """
        ids = torch.tensor([self._row(text) for text in texts], dtype=torch.int64)
        ids = ids.reshape(len(texts), self.max_words)
        return ids, ids != PADDING_ID

    def _row(self, text: str) -> list[int]:
        # A world repeats few sentences many times.
        if text not in self._rows:
            encoded = self._tokenizer.encode(text)
            ids = encoded.ids
            if not 0 < len(ids) <= self.max_words:
                advice = "shorten it or raise max_words of the policy" if ids else "say something"
                raise SpecError(
                    f"instruction '{text}' has {len(ids)} words, expected 1 to {self.max_words}; "
                    f"{advice}"
                )
            spans = zip(ids, encoded.offsets, strict=True)
            unknown = [text[start:end] for word, (start, end) in spans if word == UNKNOWN_ID]
            if unknown:
                warnings.warn(
                    f"instruction '{text}': the policy does not know {unknown} and reads {UNKNOWN} "
                    "instead; expect it to fail, or pretrain one with these words",
                    stacklevel=2,
                )
            self._rows[text] = ids + [PADDING_ID] * (self.max_words - len(ids))
        return self._rows[text]
