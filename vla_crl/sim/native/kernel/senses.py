"""Noise on what the policy sees and feels, the same for an episode wherever it runs."""

import numpy as np
from numba import njit

from vla_crl.sim.machine_code import source_version

STATE_STREAM = 1
"""Images and states of one moment have random streams of their own."""


@njit(nogil=True)
def _mix(word):
    """Return 64 scrambled bits (the finaliser of SplitMix64; Steele et al. 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(nogil=True)
def _stream(key, num_steps, number):
    golden = np.uint64(0x9E3779B97F4A7C15)
    seed = _mix(np.uint64(key) + golden) ^ (np.uint64(num_steps) * golden)
    return _mix(seed + np.uint64(number) * np.uint64(0xD1342543DE82EF95))


@njit(nogil=True)
def _normal(seed, index):
    """Return the sum of four even 16-bit numbers, scaled to mean 0 and variance 1.

    It is bounded (3.46 standard deviations), which noise on pixels is too.
    """
    bits = _mix(seed + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15))
    total = 0.0
    for part in range(4):
        total += np.float64((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF))
    return (total / 65535.0 - 2.0) * np.sqrt(3.0)


def _make_entry_points(version):
    """Return the functions that Python calls, the only ones cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def add_image_noise(images, sigma, key, num_steps):
        """Add noise to uint8 images [B, ...] in place, clipped to black and white.

        Args:
            images: C-contiguous.
            sigma: [B] standard deviation as a part of white; 0 leaves an image as it is.
            key: [B] of the episodes.
            num_steps: [B] of the moments.
        """
        _ = version
        for b in range(images.shape[0]):
            if sigma[b] == 0.0:
                continue
            seed, flat = _stream(key[b], num_steps[b], 0), images[b].reshape(-1)
            for i in range(flat.size):
                value = flat[i] + 255.0 * sigma[b] * _normal(seed, i)
                flat[i] = np.uint8(min(max(value, 0.0), 255.0) + 0.5)

    @njit(nogil=True, cache=True)
    def add_state_noise(state, sigma, key, num_steps):
        """Add noise to float32 states [B, S] in place; arguments as above, in units of the state.

        The finger positions, too, get noise of `sigma`.
        """
        _ = version
        for b in range(state.shape[0]):
            if sigma[b] > 0.0:
                seed = _stream(key[b], num_steps[b], STATE_STREAM)
                for i in range(state.shape[1]):
                    state[b, i] += np.float32(sigma[b] * _normal(seed, i))

    return add_image_noise, add_state_noise


add_image_noise, add_state_noise = _make_entry_points(source_version("native/kernel/senses.py"))
