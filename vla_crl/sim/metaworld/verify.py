"""Whether our simulation of Meta-World's tasks does what the package's own environments do.

The package's side is `metaworld.env_dict.ENV_CLS_MAP[task]()` as it is installed, with its complete
model, its rewards and its scripted policies; only the goal it is to take is handed to it.
"""

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mujoco
import numpy as np

from vla_crl.contracts import ChunkResult
from vla_crl.progress import track
from vla_crl.sim.backends import find_suite
from vla_crl.sim.metaworld.expert import MetaWorldExpert
from vla_crl.sim.metaworld.initial_states import drawn_env, observing
from vla_crl.sim.metaworld.metaworld_sim import MetaWorldSim
from vla_crl.sim.metaworld.models import env_class, require_metaworld
from vla_crl.sim.metaworld.suite import MetaWorldSuite
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.verification import MAX_DIFFERENCE, drawn_tasks

SUITE = "metaworld_mt50@eef_position"
"""All tasks, with Meta-World's own four numbers as action."""
NUM_RANDOM_STEPS = 20
NUM_EPISODES = 2
"""Of the scripted policy, in every task."""
NUM_STATES = 96
"""Perturbed states in every task."""
NOISE = (0.001, 0.005, 0.02)
"""Standard deviations of what is added to all joint positions (m, rad), in turn."""
NUM_LAST_STEPS = 24
"""Perturbed states come from the last steps of the scripted episodes, every second from the very
last, where most tasks have just succeeded."""


@dataclass(frozen=True)
class Row:
    """What was found in one task.

    Attributes:
        task: Its name.
        max_abs_dqpos: Greatest difference of a joint position (m, rad) in random steps.
        max_abs_dobserved: Greatest difference of one of the 39 numbers that Meta-World observes.
        num_states: Perturbed states looked at.
        num_successes: Those that the package calls a success.
        num_agreed: Those of which we say the same.
        num_episodes: Episodes of the scripted policy, ours and the package's each on its own.
        num_solved: Those that end with success in the package.
        num_same_end: Those that end alike in the same step.
    """

    task: str
    max_abs_dqpos: float
    max_abs_dobserved: float
    num_states: int
    num_successes: int
    num_agreed: int
    num_episodes: int
    num_solved: int
    num_same_end: int

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return (
            max(self.max_abs_dqpos, self.max_abs_dobserved) <= MAX_DIFFERENCE
            and self.num_agreed == self.num_states
            and self.num_same_end == self.num_episodes
        )


def verify(tasks: int | None = None, seed: int = 0) -> list[Row]:
    """Compare tasks with the package, in the order of the suite.

    Args:
        tasks: How many, drawn with the seed; all by default.
        seed: Of initial states, random actions and perturbations.

    Raises:
        ConfigError: The package is missing, or has fewer tasks.
    """
    require_metaworld()
    suite = cast(MetaWorldSuite, find_suite(SUITE))
    drawn = drawn_tasks("verify metaworld", len(suite.tasks), tasks, seed)
    rows, sim = [], MetaWorldSim(suite, NUM_STATES)
    try:
        with track("verify metaworld", len(drawn)) as bar:
            for task in drawn:
                rows.append(compare(sim, task, seed))
                bar.advance(1, rows[-1].task)
    finally:
        sim.close()
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown."""
    lines = [
        "| task | max abs dqpos | max abs dobserved | states: same answer | of them successes | "
        "episodes: same end | of them solved |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row.task}` | {row.max_abs_dqpos:.1e} | {row.max_abs_dobserved:.1e} | "
        f"{row.num_agreed} of {row.num_states} | {row.num_successes} | "
        f"{row.num_same_end} of {row.num_episodes} | {row.num_solved} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def compare(sim: MetaWorldSim, task: int, seed: int) -> Row:
    """Compare one task with the package.

    Args:
        sim: NUM_STATES slots of SUITE; all are used.
        task: Its index.
        seed: As of `verify`.
    """
    name = sim.suite.tasks[task].name
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    dqpos, dobserved = _random_steps(_Pair(sim, task, rng), rng)
    num_successes = num_agreed = num_solved = num_same_end = 0
    for _ in range(NUM_EPISODES):
        pair = _Pair(sim, task, rng)
        is_solved, is_same, states = _episode(pair)
        num_solved, num_same_end = num_solved + is_solved, num_same_end + is_same
        theirs, ours = _perturbed(pair, states, rng)
        num_successes, num_agreed = num_successes + sum(theirs), num_agreed + sum(theirs == ours)
    return Row(
        name, dqpos, dobserved, NUM_EPISODES * NUM_STATES, int(num_successes), int(num_agreed),
        NUM_EPISODES, num_solved, num_same_end,
    )  # fmt: skip


class _Pair:
    """An episode of one task, ours in slot 0 of a simulation, the package's in an environment."""

    def __init__(self, sim: MetaWorldSim, task: int, rng: np.random.Generator) -> None:
        """Begin it in a test state."""
        name, state_id = sim.suite.tasks[task].name, int(rng.choice(sim.suite.test_ids))
        self.sim, self.task, self.state_id = sim, task, state_id
        self.env = observing(env_class(name)())
        self.env._freeze_rand_vec = True
        self.env._last_rand_vec = drawn_env(name, state_id)._last_rand_vec.copy()
        self.theirs: np.ndarray = self.env.reset()[0]
        """[39] what the package observes."""
        sim.reset([0], tasks=[task], state_ids=[state_id])

    @property
    def ours(self) -> np.ndarray:
        """[39] what we observe."""
        return self.sim.observed([0])[0]

    def step(self, theirs: np.ndarray, ours: np.ndarray) -> tuple[bool, ChunkResult]:
        """Take a step with an action [4] on either side; return whether they call it success."""
        self.theirs, _, _, _, info = self.env.step(theirs)
        return bool(info["success"]), self.sim.step_chunk(ours[None, None], [0])

    def physics(self) -> np.ndarray:
        """Return the package's state as `STATE_SPEC` packs it."""
        model, data = self.env.model, self.env.data
        state = np.empty(mujoco.mj_stateSize(model, STATE_SPEC))
        mujoco.mj_getState(model, data, state, STATE_SPEC)
        return state


def _random_steps(pair: _Pair, rng: np.random.Generator) -> tuple[float, float]:
    """Return the greatest difference of qpos and of what is observed."""
    nq, differences = pair.env.model.nq, []
    for _ in range(NUM_RANDOM_STEPS):
        action = rng.uniform(-1.0, 1.0, 4)
        _, result = pair.step(action, action)
        qpos = pair.sim.get_states()["physics"][0, 1 : 1 + nq]
        by = np.abs(qpos - pair.env.data.qpos).max(), np.abs(pair.ours - pair.theirs).max()
        differences.append(by)
        if result.terminated[0]:
            break
    return tuple(np.max(differences, axis=0).tolist())


def _episode(pair: _Pair) -> tuple[bool, bool, np.ndarray]:
    """Let the scripted policy act on both sides, each seeing its own.

    Returns:
        Whether the package's episode ends with success, whether ours ends alike in the same step,
        and the package's last states [<= NUM_LAST_STEPS, state].
    """
    from metaworld.policies import ENV_POLICY_MAP

    own = pair.sim.suite.tasks[pair.task]
    expert, policy, states = MetaWorldExpert(pair.sim), ENV_POLICY_MAP[own.name](), []
    success, is_same = False, True
    for step in range(1, own.horizon + 1):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant.* may be too high")
            # Of the policy's float32 the package computes the hand's way in float32.
            action = np.clip(policy.get_action(pair.theirs), -1.0, 1.0).astype(np.float64)
        success, result = pair.step(action, expert.act(np.array([0]))[0])
        states.append(pair.physics())
        is_over = success or step == own.horizon
        is_same = bool(result.success[0]) == success
        is_same &= bool(result.terminated[0] | result.truncated[0]) == is_over
        if is_over or not is_same:
            break
    return success, is_same, np.array(states[-NUM_LAST_STEPS:])


def _perturbed(
    pair: _Pair, states: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return [NUM_STATES] bool: of which states the package and we say that they are a success."""
    env, sim = pair.env, pair.sim
    chosen = np.full(NUM_STATES, len(states) - 1)
    chosen[::2] = rng.integers(len(states), size=len(chosen[::2]))
    perturbed = states[chosen]
    scale = np.resize(np.repeat(NOISE, 2), NUM_STATES)[:, None]
    noise = scale * rng.normal(size=(NUM_STATES, env.model.nq))
    perturbed[:, 1 : 1 + env.model.nq] += noise
    slots = np.arange(NUM_STATES)
    sim.reset(slots, tasks=[pair.task] * NUM_STATES, state_ids=[pair.state_id] * NUM_STATES)
    ours = sim.get_states()
    ours["physics"][:, : perturbed.shape[1]] = perturbed
    sim.set_states(ours)
    theirs = np.array([_is_success(env, state) for state in perturbed])
    return theirs, sim.satisfied()


def _is_success(env: Any, state: np.ndarray) -> bool:
    """Ask the package, as its `step` does."""
    mujoco.mj_setState(env.model, env.data, state, STATE_SPEC)
    mujoco.mj_forward(env.model, env.data)
    space = env.sawyer_observation_space
    observed = np.clip(env._get_obs(), space.low, space.high)
    return bool(env.evaluate_state(observed, np.zeros(4))[1]["success"])
