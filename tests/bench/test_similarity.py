"""Structural similarity, against closed forms and scikit-image."""

import numpy as np
import pytest

from vla_crl.bench.similarity import structural_similarity


@pytest.fixture
def noisy_pair():
    random = np.random.default_rng(7)
    picture = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    noise = random.integers(-60, 61, picture.shape)
    return picture, np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


def test_a_picture_is_like_itself(noisy_pair):
    assert structural_similarity(noisy_pair[0], noisy_pair[0]) == 1.0


def test_uniform_pictures_differ_in_luminance_only():
    a, b = np.full((20, 30, 3), 100, np.uint8), np.full((20, 30, 3), 150, np.uint8)
    # (2 * 100 * 150 + c1) / (100^2 + 150^2 + c1), with c1 = (0.01 * 255)^2
    assert structural_similarity(a, b) == pytest.approx(30006.5025 / 32506.5025, rel=1e-9)


def test_result_is_that_of_scikit_image(noisy_pair):
    # skimage 0.26: structural_similarity(luma, luma, data_range=255, gaussian_weights=True,
    # sigma=1.5, use_sample_covariance=False), luma of ITU-R BT.601.
    assert structural_similarity(*noisy_pair) == pytest.approx(0.9076302571533009, rel=1e-9)


def test_order_does_not_matter(noisy_pair):
    a, b = noisy_pair
    assert structural_similarity(a, b) == pytest.approx(structural_similarity(b, a), rel=1e-12)


def test_pictures_that_cannot_be_compared_are_refused():
    small, large = np.zeros((10, 30, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\[20, 30, 3\] and \[10, 30, 3\]; expected the same"):
        structural_similarity(large, small)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        structural_similarity(small, small)
