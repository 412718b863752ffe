"""Original LIBERO behind the contract beside our own simulation: the same episode, seen alike."""

import numpy as np
import pytest

from vla_crl.bench.similarity import structural_similarity
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.simulator import OriginalSim

CREAM_CHEESE, STATE = 1, 2


@pytest.mark.slow
@pytest.mark.render
def test_the_original_and_ours_play_the_same_episode_and_gl_draws_the_same_pictures(read_small):
    suite = read_small("libero_object").with_option("lerobot")
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (1, 12, 7))
    seen = []
    for sim in (
        OriginalSim(suite.with_option("original"), 1, image_size=128),
        LiberoSim(suite.with_option("gl"), 1, image_size=128),
        LiberoSim(suite, 1, image_size=128),
    ):
        try:
            sim.reset([0], tasks=[CREAM_CHEESE], state_ids=[suite.test_ids[STATE]])
            sim.step_chunk(actions)
            seen.append(sim.observe())
        finally:
            sim.close()
    original, gl, own = seen
    for other in (gl, own):
        np.testing.assert_allclose(original.state, other.state, atol=1e-6)
        assert other.images.shape == original.images.shape == (1, 2, 128, 128, 3)
    for camera in range(2):  # mirrored, from 256 pixels made smaller
        pair = original.images[0, camera], gl.images[0, camera]
        assert structural_similarity(*pair) > 0.99
        assert structural_similarity(pair[0], own.images[0, camera]) > 0.7
        assert structural_similarity(pair[0], pair[1][:, ::-1]) < 0.7
