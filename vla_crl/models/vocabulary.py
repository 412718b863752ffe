"""A policy learns to read sentences that it could not read: new words, and longer ones."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from vla_crl.models.policy import VLAPolicy
from vla_crl.models.tokenizer import NUM_SPECIAL, PADDING_ID, WordTokenizer


def make_readable(policy: VLAPolicy, sentences: Sequence[str]) -> tuple[str, ...]:
    """Give words that a policy does not know numbers of their own, and long sentences their room.

    Known words keep their numbers and their embeddings, and padding is never looked at: what the
    policy does when it is told what it could read before does not change by a bit. The embeddings
    of new words are drawn from a normal distribution with mean and standard deviation of those of
    the known words. A pretrained tokenizer knows parts of all words already.

    Args:
        policy: Without adapters; changed.
        sentences: What it has to read.

    Returns:
        The new words, in the order in which they appear.
    """
    words: tuple[str, ...] = ()
    if isinstance(policy.tokenizer, WordTokenizer):
        unknown = map(policy.tokenizer.unknown_words, sentences)
        words = tuple(dict.fromkeys(word for found in unknown for word in found))
    if words:
        _add_words(policy, words)
    longest = max(map(policy.tokenizer.length, sentences), default=0)
    if longest > policy.config.max_words:
        policy.config = replace(policy.config, max_words=longest)
        policy.tokenizer.max_words = longest
    return words


@torch.no_grad()
def _add_words(policy: VLAPolicy, words: tuple[str, ...]) -> None:
    config, backbone = policy.config, policy.backbone
    config = replace(config, vocabulary=(*config.vocabulary, *words))
    tokenizer = WordTokenizer(config.vocabulary, config.max_words)
    known = backbone.model.get_input_embeddings().weight
    trained = known[NUM_SPECIAL:]
    drawn = torch.randn(len(words), known.shape[1]).to(known.device)
    new = trained.mean(dim=0) + trained.std(dim=0, correction=0) * drawn
    embedding = nn.Embedding.from_pretrained(
        torch.cat([known, new]), freeze=False, padding_idx=PADDING_ID
    )
    backbone.model.set_input_embeddings(embedding)
    backbone.model.config.get_text_config().vocab_size = tokenizer.num_words
    backbone.vlm = replace(backbone.vlm, tokenizer=tokenizer)
    policy.config, policy.tokenizer = config, tokenizer
    policy.base = None  # its fingerprint was that of other weights
