import pytest

from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.tokenizer import WordTokenizer

WORDS = ("pick", "up", "the", "cube", ",")


def test_words_are_numbered_in_order_after_the_special_tokens():
    ids, mask = WordTokenizer(WORDS, 5).encode(["pick up the cube"])
    assert ids.tolist() == [[2, 3, 4, 5, 0]]
    assert mask.tolist() == [[True, True, True, True, False]]


def test_case_is_ignored_and_punctuation_is_a_word():
    ids, _ = WordTokenizer(WORDS, 5).encode(["Pick up, THE cube"])
    assert ids.tolist() == [[2, 3, 6, 4, 5]]


def test_unknown_words_become_the_unknown_token_and_are_named_once():
    tokenizer = WordTokenizer(WORDS, 5)
    with pytest.warns(
        UserWarning, match=r"'Pick the Teapot': the policy does not know \['Teapot'\]"
    ):
        ids, mask = tokenizer.encode(["Pick the Teapot"])
    assert ids.tolist() == [[2, 4, 1, 0, 0]]
    assert mask[0, 2]
    tokenizer.encode(["Pick the Teapot"])  # another warning would be an error


def test_too_long_text_is_refused_and_not_cut():
    with pytest.raises(SpecError, match="'the the the' has 3 words, expected 1 to 2; shorten"):
        WordTokenizer(WORDS, 2).encode(["the the the"])


def test_empty_text_is_refused():
    with pytest.raises(SpecError, match="has 0 words, expected 1 to 2"):
        WordTokenizer(WORDS, 2).encode([" "])


def test_no_texts_give_empty_tensors():
    ids, mask = WordTokenizer(WORDS, 4).encode([])
    assert ids.shape == mask.shape == (0, 4)


def test_repeated_words_are_refused():
    with pytest.raises(ConfigError, match=r"\['up'\] given more than once"):
        WordTokenizer(("up", "the", "up"), 4)
