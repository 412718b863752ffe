"""Original LIBERO behind the contract beside our own simulation: the same episode."""

import numpy as np
import pytest

from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.simulator import OriginalSim

CREAM_CHEESE, STATE = 1, 2


@pytest.mark.slow
@pytest.mark.render
def test_the_original_and_ours_play_the_same_episode(read_small):
    suite = read_small("libero_object").with_option("lerobot")
    original, ours = OriginalSim(suite.with_option("original"), 1), LiberoSim(suite, 1)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (1, 12, 7))
    try:
        seen = []
        for sim in (original, ours):
            sim.reset([0], tasks=[CREAM_CHEESE], state_ids=[suite.test_ids[STATE]])
            sim.step_chunk(actions)
            seen.append(sim.observe())
    finally:
        original.close()
        ours.close()
    np.testing.assert_allclose(seen[0].state, seen[1].state, atol=1e-6)
    assert seen[0].images.shape == seen[1].images.shape == (1, 2, 64, 64, 3)
    # Another renderer, the same picture: mirrored or upside down it would differ by far more.
    difference = np.abs(seen[0].images.astype(float) - seen[1].images).mean()
    for flipped in (seen[1].images[:, :, ::-1], seen[1].images[:, :, :, ::-1]):
        assert difference < 0.8 * np.abs(seen[0].images.astype(float) - flipped).mean()
