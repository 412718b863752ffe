"""Tokenizers: words of a vocabulary that travels with the checkpoint, or a pretrained model's."""

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_crl.errors import ConfigError, SpecError

PADDING = "[PAD]"
UNKNOWN = "[UNK]"
PADDING_ID = 0
UNKNOWN_ID = 1
NUM_SPECIAL = 2
"""Tokens before the words of a vocabulary."""


def check_vocabulary(vocabulary: Sequence[str]) -> None:
    """Check that words differ from one another and from the special tokens.

    Raises:
        ConfigError: Names those that do not.
    """
    counts = Counter([PADDING, UNKNOWN, *vocabulary])
    if repeated := sorted(word for word, count in counts.items() if count > 1):
        raise ConfigError(f"vocabulary: {repeated} given more than once; remove the copies")


class Tokenizer(ABC):
    """Sentences to rows of numbers, all as long as the longest sentence allowed."""

    unit: str
    """What a number stands for, for error messages."""

    def __init__(self, max_words: int) -> None:
        """Start with no sentence known.

        Args:
            max_words: Length every text is padded to.
        """
        self.max_words = max_words
        self._rows: dict[str, list[int]] = {}

    @abstractmethod
    def _numbers(self, text: str) -> list[int]:
        """Return the numbers of a text that was not seen before."""

    def length(self, text: str) -> int:
        """Return how many numbers a text becomes, however long it may be."""
        return len(self._numbers(text))

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return numbers [N, max_words] int64 and their mask [N, max_words] bool.

        Raises:
            SpecError: A text has no word, or more than `max_words`; nothing is cut off silently.
        """
        rows = [self._row(text) for text in texts]
        ids = torch.tensor([row + [PADDING_ID] * (self.max_words - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(self.max_words) < lengths[:, None]
        return ids.reshape(mask.shape).to(torch.int64), mask

    def _row(self, text: str) -> list[int]:
        # A world repeats few sentences many times.
        if text not in self._rows:
            numbers = self._numbers(text)
            if not 0 < len(numbers) <= self.max_words:
                advice = (
                    "shorten it or raise max_words of the policy" if numbers else "say something"
                )
                raise SpecError(
                    f"instruction '{text}' has {len(numbers)} {self.unit}, expected 1 to "
                    f"{self.max_words}; {advice}"
                )
            self._rows[text] = numbers
        return self._rows[text]


class WordTokenizer(Tokenizer):
    """Lower-cased words and punctuation marks to numbers.

    Unknown words become `[UNK]`; a warning names them, once for every text.
    """

    unit = "words"

    def __init__(self, vocabulary: Sequence[str], max_words: int) -> None:
        """Build the tokenizer.

        Args:
            vocabulary: Words without the two special tokens; a word's order is its number.
            max_words: Length every text is padded to.

        Raises:
            ConfigError: The same word twice, or a special token among the words.
        """
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        super().__init__(max_words)
        check_vocabulary(vocabulary)
        words = [PADDING, UNKNOWN, *vocabulary]
        self.num_words = len(words)
        self._known = frozenset(words)
        ids = {word: index for index, word in enumerate(words)}
        self._tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
        self._tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
        self._tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that are not in the vocabulary, as it would have them."""
        split: Any = self._tokenizer.pre_tokenizer
        normal: Any = self._tokenizer.normalizer
        words = split.pre_tokenize_str(normal.normalize_str(text))
        return [word for word, _ in words if word not in self._known]

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json`, which the library tokenizers reads."""
        self._tokenizer.save(str(path))

    def _numbers(self, text: str) -> list[int]:
        encoded = self._tokenizer.encode(text)
        spans = zip(encoded.ids, encoded.offsets, strict=True)
        unknown = [text[start:end] for word, (start, end) in spans if word == UNKNOWN_ID]
        if unknown:
            warnings.warn(
                f"instruction '{text}': the policy does not know {unknown} and reads {UNKNOWN} "
                "instead; expect it to fail, or pretrain one with these words",
                stacklevel=4,
            )
        return encoded.ids


class SubwordTokenizer(Tokenizer):
    """The tokenizer of a pretrained model, with the special tokens that it adds on its own."""

    unit = "tokens"

    def __init__(self, tokenizer: Any, max_words: int) -> None:
        """Wrap a tokenizer of transformers."""
        super().__init__(max_words)
        self._tokenizer = tokenizer

    def _numbers(self, text: str) -> list[int]:
        return self._tokenizer(text).input_ids
