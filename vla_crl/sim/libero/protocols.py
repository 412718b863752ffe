"""How others measure success on LIBERO, so that a number can be compared with theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vla_crl.sim.libero.config import NUM_TEST_STATES
from vla_crl.sim.renderer.looks import LookName

RESET_SEEDS = {"seed 0": (0, False), "seed 7": (7, False), "seed 1000 + state": (1000, True)}
"""How `np.random` is seeded that displaces the fixtures at every reset: with this number once for a
task, or (True) with the number plus the initial state's before each reset."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is fixed of an evaluation on the official initial states.

    Attributes:
        image_size: Height and width (pixels) of what LIBERO renders; the policy's own size is made
            from that. None renders in the policy's size.
        is_turned: Whether pictures are those of robosuite turned by 180 degrees, as these projects
            feed them: upright and mirrored. Otherwise they are as the camera sees.
        wait_steps: Control steps after a reset in which the robot stands still and opens its
            gripper, while things settle; they do not count.
        horizons: Control steps of an episode, by the name of LIBERO's benchmark; others keep the
            suite's own.
        trials: Episodes a task, on the first of the official initial states.
        resets: A key of `RESET_SEEDS`: the fixtures' poses are not part of an initial state.
        chunk: Control steps that are executed of a chunk of actions, None: as the policy does.
        look: Which MuJoCo's pictures these are: that of the versions used there.
        source: Where this was read.
    """

    image_size: int | None
    is_turned: bool
    wait_steps: int
    horizons: Mapping[str, int]
    trials: int
    resets: Literal["seed 0", "seed 7", "seed 1000 + state"]
    chunk: int | None
    look: LookName
    source: str


_HORIZONS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}

PROTOCOLS = {
    "own": Protocol(
        image_size=None,
        is_turned=False,
        wait_steps=10,
        horizons={},
        trials=NUM_TEST_STATES,
        resets="seed 0",
        chunk=None,
        look="mujoco_3_8",
        source="this project: pictures as the camera sees, horizons of openpi",
    ),
    "openpi": Protocol(
        image_size=256,
        is_turned=True,
        wait_steps=10,
        horizons=_HORIZONS,
        trials=50,
        resets="seed 7",
        chunk=5,
        look="mujoco_3_2",
        source="Physical-Intelligence/openpi 15a9616, examples/libero/main.py",
    ),
    "openvla_oft": Protocol(
        image_size=256,
        is_turned=True,
        wait_steps=10,
        horizons=_HORIZONS,
        trials=50,
        resets="seed 0",
        chunk=8,
        look="mujoco_3_2",
        source="moojink/openvla-oft 213c5ff, experiments/robot/libero/run_libero_eval.py",
    ),
    "lerobot": Protocol(
        image_size=256,
        is_turned=True,
        wait_steps=10,
        horizons=_HORIZONS | {"libero_spatial": 280},
        trials=10,
        resets="seed 1000 + state",
        chunk=None,
        look="mujoco_3_8",
        source="huggingface/lerobot 7427f31, envs/libero.py",
    ),
    "study": Protocol(
        image_size=256,
        is_turned=True,
        wait_steps=10,
        horizons=dict.fromkeys(_HORIZONS, 512),
        trials=50,
        resets="seed 0",
        chunk=8,
        look="mujoco_3_2",
        source="UT-Austin-RobIn/continual-vla-rl dc1b1c8 (arXiv 2603.11653), which draws 320 "
        "episodes a task from the 50 states with replacement; here each state is tried once",
    ),
}
"""By name; "own" is what a suite has that names none."""
