"""How fast a suite is simulated, beside MuJoCo alone on the same motion."""

import time
from collections.abc import Callable
from statistics import median

import mujoco
import mujoco.rollout
import numpy as np

from vla_crl.bench.record import BenchRecord, against_peer
from vla_crl.bench.workload import CHUNK_STEPS, IMAGE_SIZE
from vla_crl.hardware import num_cores
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.packed_state import STATE_SPEC

START_SPEC = int(
    mujoco.mjtState.mjSTATE_TIME
    | mujoco.mjtState.mjSTATE_QPOS
    | mujoco.mjtState.mjSTATE_QVEL
    | mujoco.mjtState.mjSTATE_ACT
)
"""What a replay starts from: the full physics state of a model without plugins."""
INPUT_SPEC = int(
    mujoco.mjtState.mjSTATE_CTRL
    | mujoco.mjtState.mjSTATE_MOCAP_POS
    | mujoco.mjtState.mjSTATE_MOCAP_QUAT
)
"""What a replay prescribes: actuator commands and the fixtures' places."""


def bench_sim(
    suite: str = "tabletop_object",
    *,
    num_slots: int = 64,
    num_chunks: int = 4,
    num_repeats: int = 5,
) -> list[BenchRecord]:
    """Measure control steps per second of the first seconds of the expert's episodes.

    The peer is `mujoco.rollout`, which only calls `mj_step` on a pool of threads: it starts in the
    same states, replays the same actuator commands and so meets the same contacts. It neither
    solves inverse kinematics nor checks goals.

    Args:
        suite: Its name in the catalogue.
        num_slots: Robots, tasks in turn.
        num_chunks: Chunks of four control steps; the expert needs about five for an episode.
        num_repeats: Timed turns of each, taken alternately; the median counts.

    Returns:
        Two records, of stepping alone and of stepping with one observation per chunk.
    """
    loaded, num_threads = load_suite(suite), num_cores()
    sim = VectorSim(loaded, num_slots, num_threads=num_threads, image_size=IMAGE_SIZE)
    actions, initial, states = record_expert(sim, num_chunks * CHUNK_STEPS)

    def play(*, is_observed: bool) -> int:
        start_episodes(sim)
        running, num_steps = np.arange(num_slots), 0
        for start in range(0, actions.shape[1], CHUNK_STEPS):
            if is_observed:
                sim.observe(running)
            result = sim.step_chunk(actions[running, start : start + CHUNK_STEPS], running)
            num_steps += int(result.num_steps.sum())
            running = running[~(result.terminated | result.truncated)]
        return num_steps

    with mujoco.rollout.Rollout(nthread=num_threads) as pool:
        turns = (
            lambda: play(is_observed=False),
            lambda: play(is_observed=True),
            _replay(pool, loaded, initial, states, num_threads),
        )
        for turn in turns:
            turn()  # compiles, or loads from the disk, and fills the caches
        rates = [[_rate(turn) for turn in turns] for _ in range(num_repeats)]
    sim.close()
    stepped, observed, limit = (median(values) for values in zip(*rates, strict=True))
    seen = f"observed_{IMAGE_SIZE}x{IMAGE_SIZE}"
    return [
        against_peer(f"sim.{suite}.state", stepped, "steps/s", "mujoco.rollout", limit, goal=0.8),
        against_peer(f"sim.{suite}.{seen}", observed, "steps/s", "mujoco.rollout", limit),
    ]


def _replay(
    pool: mujoco.rollout.Rollout,
    suite: Suite,
    initial: np.ndarray,
    states: np.ndarray,
    num_threads: int,
) -> Callable[[], int]:
    """Return what lets MuJoCo follow the recorded actuator commands, counting control steps."""
    model, num_substeps = suite.scenes[0].model, suite.scenes[0].num_substeps
    datas = [mujoco.MjData(model) for _ in range(num_threads)]
    start = state_part(model, initial, START_SPEC)
    warmstart = state_part(model, initial, int(mujoco.mjtState.mjSTATE_WARMSTART))
    inputs = np.array([state_part(model, state, INPUT_SPEC) for state in (initial, *states)])
    fraction = np.arange(1, num_substeps + 1)[:, None] / num_substeps
    ramps = inputs[:-1, :, None] + fraction * np.diff(inputs, axis=0)[:, :, None]
    control = np.concatenate(ramps, axis=1)  # [N, T * substeps, commands and fixtures]
    models, num_steps = [model] * len(control), control.shape[1]

    def replay() -> int:
        pool.rollout(
            models, datas, start, control, control_spec=INPUT_SPEC, skip_checks=True,
            nstep=num_steps, initial_warmstart=warmstart,
        )  # fmt: skip
        return len(control) * len(states)

    return replay


def state_part(model: mujoco.MjModel, states: np.ndarray, spec: int) -> np.ndarray:
    """Extract one part of packed physics states [N, ...], which may be wider than the model's.

    Args:
        model: Of all.
        states: Packed by `STATE_SPEC`.
        spec: What of them.
    """
    size = mujoco.mj_stateSize(model, STATE_SPEC)
    part = np.empty((len(states), mujoco.mj_stateSize(model, spec)))
    for source, target in zip(states, part, strict=True):
        mujoco.mj_extractState(model, source[:size], STATE_SPEC, target, spec)
    return part


def start_episodes(sim: VectorSim) -> None:
    """Begin an episode in every slot: the first scene's tasks in turn, training states in order."""
    slots = np.arange(sim.num_slots)
    ids = np.resize(sim.suite.train_ids, sim.num_slots)
    tasks = np.flatnonzero(sim.suite.scene_of_task == 0)  # one model, as the peer has
    sim.reset(slots, tasks=np.resize(tasks, sim.num_slots), state_ids=ids)


def record_expert(sim: VectorSim, num_steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return actions [N, T, 7] and physics before [N, state] and after each step [T, N, state].

    What has ended keeps its state.
    """
    start_episodes(sim)
    expert, running = ScriptedExpert(sim), np.arange(sim.num_slots)
    actions = np.zeros((sim.num_slots, num_steps, len(sim.suite.embodiment.action)))
    initial, states = sim.get_states()["physics"], []
    for step in range(num_steps):
        actions[running, step] = expert.act(running)
        result = sim.step_chunk(actions[running, step : step + 1], running)
        running = running[~(result.terminated | result.truncated)]
        states.append(sim.get_states()["physics"])
    return actions, initial, np.array(states)


def _rate(turn: Callable[[], int]) -> float:
    start = time.perf_counter()
    num_steps = turn()
    return num_steps / (time.perf_counter() - start)
