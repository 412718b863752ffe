"""Film a policy or the expert at work: episodes beside each other."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import mujoco
import numpy as np

from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError
from vla_crl.progress import console
from vla_crl.report.video import GridVideo
from vla_crl.rollout.agents import Agent, act_by_task
from vla_crl.rollout.episodes import evaluated
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.rollout.replay import RecordingAgent, ReplayingAgent
from vla_crl.sim.backends import simulate
from vla_crl.sim.divergence import DIVERGENCES, save_divergences
from vla_crl.sim.simulation import Filmed, MujocoScenes, Simulation, require
from vla_crl.sim.task_suite import TaskSuite

Renderer = Literal["own", "mujoco"]
PIXELS = 256
"""Height and width of a filmed tile; the policy sees its own smaller images."""


def record_rollouts(
    agent: Agent,
    suite: TaskSuite,
    tasks: Sequence[str] | None = None,
    *,
    episodes: int | Sequence[int],
    output: Path,
    compute: ComputeConfig,
    title: str = "",
    renderer: Renderer = "own",
) -> list[bool]:
    """Write an mp4 of episodes, one tile each, tasks one after another.

    Worlds are simulated on the CPU, where all can be drawn.

    Args:
        agent: Who acts.
        suite: Where.
        tasks: Task names; all tasks of the suite by default.
        episodes: How many a task, on the first test states; or on which initial states, of test or
            of training.
        output: The mp4 file.
        compute: With how many threads.
        title: Line above the tiles.
        renderer: "own" needs no graphics and is fast; "mujoco" draws with OpenGL: smooth edges,
            shadows, some tens of frames a second in software.

    Returns:
        Whether each tile's episode succeeded.

    Raises:
        ConfigError: An unknown task or initial state, or more episodes than test states.
    """
    tiles = _choose_tiles(suite, tasks, episodes)
    with closing(_simulate_tiles(agent, suite, tiles, compute)) as sim:
        return _record(agent, sim, tiles, output, title, renderer)


def record_failures(
    agent: Agent,
    suite: TaskSuite,
    tasks: Sequence[str] | None = None,
    *,
    num_episodes: int,
    num_envs: int,
    output: Path,
    compute: ComputeConfig,
    renderer: Renderer = "own",
) -> list[bool]:
    """Play the episodes of an evaluation, and write an mp4 of those that failed.

    What is filmed is what was played: its actions are repeated. The agent asked once more, in a
    batch of another size, would round differently, and some of the failures would succeed.

    Args:
        agent: Who acts.
        suite: Where.
        tasks: Task names; all tasks of the suite by default.
        num_episodes: Greatest number of failures a task.
        num_envs: Robots at a time; as many as in an evaluation, for the same to fail.
        output: The mp4 file; there is none where nothing fails.
        compute: With how many threads.
        renderer: See `record_rollouts`.

    Returns:
        Whether each tile's episode succeeded, which none did; as many as were filmed.

    Raises:
        ConfigError: An unknown task.
    """
    recording, on_cpu = RecordingAgent(agent), replace(compute, sim_device="cpu")
    indices, ids = evaluated(suite, tasks, suite.trials, "test")
    num_envs = min(num_envs, len(indices) * len(ids))
    sims = simulate_lanes(
        suite, num_envs, image_size=agent.image_size, compute=on_cpu, tasks=indices
    )
    try:
        results = evaluate(recording, sims, tasks, num_episodes=len(ids))
    finally:
        close_lanes(sims)
    failed = [
        (index, episode.state_id)
        for index, result in zip(indices, results, strict=True)
        for episode in [e for e in result.played if not e.success][:num_episodes]
    ]
    num_failed = sum(result.episodes - result.successes for result in results)
    console.print(
        f"{num_failed} of {len(indices) * len(ids)} episodes failed, filmed are {len(failed)}",
        soft_wrap=True,
    )
    if not failed:
        return []
    tiles = _Tiles(*np.array(failed).T)
    again = ReplayingAgent(recording.chunks, agent.image_size)
    with closing(_simulate_tiles(again, suite, tiles, compute)) as sim:
        return _record(again, sim, tiles, output, "Failures", renderer)


def film_run(
    agents: Mapping[str, Agent],
    suite: TaskSuite,
    tasks: Sequence[str],
    *,
    num_episodes: int,
    folder: Path,
    compute: ComputeConfig,
) -> None:
    """Film the same test episodes with several agents, one file of `folder` each.

    Args:
        agents: By name, e.g. "before training"; the name becomes the title and, behind the
            agent's number, the file's name. All want images of one size.
        suite: Where.
        tasks: Task names.
        num_episodes: Episodes a task.
        folder: Where the mp4 files go.
        compute: With how many threads.
    """
    tiles = _choose_tiles(suite, tasks, num_episodes)
    with closing(_simulate_tiles(next(iter(agents.values())), suite, tiles, compute)) as sim:
        for number, (name, agent) in enumerate(agents.items()):
            output = folder / f"{number}_{name.replace(' ', '_')}.mp4"
            _record(agent, sim, tiles, output, name.capitalize(), "own")


class _Tiles(NamedTuple):
    """What is shown in each of N tiles.

    Attributes:
        tasks: [N] task indices.
        state_ids: [N] initial states.
    """

    tasks: np.ndarray
    state_ids: np.ndarray


def _choose_tiles(
    suite: TaskSuite, tasks: Sequence[str] | None, episodes: int | Sequence[int]
) -> _Tiles:
    test, train = suite.test_ids, suite.train_ids
    if isinstance(episodes, int):
        if not 1 <= episodes <= len(test):
            raise ConfigError(f"rollout: {episodes} episodes a task, expected 1 to {len(test)}")
        episodes = test[:episodes]
    for state_id in episodes:
        if state_id not in test and state_id not in train:
            raise ConfigError(
                f"rollout: suite '{suite.name}' has no initial state {state_id}, expected "
                f"{_span(test)} (test) or {_span(train)} (training)"
            )
    indices = [suite.task_index(name) for name in tasks or [task.name for task in suite.tasks]]
    return _Tiles(np.repeat(indices, len(episodes)), np.tile(episodes, len(indices)))


def _span(ids: range) -> str:
    return f"{ids[0]} to {ids[-1]}" if ids else "none"


def _simulate_tiles(
    agent: Agent, suite: TaskSuite, tiles: _Tiles, compute: ComputeConfig
) -> Simulation:
    return simulate(
        suite,
        len(tiles.tasks),
        num_threads=compute.num_sim_threads,
        image_size=agent.image_size,
        tasks=np.unique(tiles.tasks).tolist(),
    )


def _record(
    agent: Agent, sim: Simulation, tiles: _Tiles, output: Path, title: str, renderer: Renderer
) -> list[bool]:
    slots = np.arange(sim.num_slots)
    sim.reset(slots, tasks=tiles.tasks, state_ids=tiles.state_ids)
    act, draw = act_by_task(agent, sim), _DRAWERS[renderer](sim)
    outcomes: list[bool | None] = [None] * sim.num_slots
    captions = sim.observe(images=False).instruction
    running = slots
    with GridVideo(
        output,
        captions,
        title=title,
        num_columns=_num_columns(len(captions)),
        fps=round(sim.suite.control_hz),
    ) as video:
        while len(running):
            chunk = act(running)
            planned = dict(zip(running.tolist(), chunk, strict=True))
            for step in range(chunk.shape[1]):
                video.write(draw(), outcomes)
                actions = np.stack([planned[slot][step : step + 1] for slot in running.tolist()])
                result = sim.step_chunk(actions, running)
                for line in save_divergences(sim.divergences, DIVERGENCES):
                    console.print(line, soft_wrap=True)
                is_over = result.terminated | result.truncated
                for slot, success in zip(running[is_over], result.success[is_over], strict=True):
                    outcomes[slot] = bool(success)
                running = running[~is_over]
                if not len(running):
                    break
        video.write(draw(), outcomes)
    return [bool(outcome) for outcome in outcomes]


def _num_columns(num_tiles: int) -> int:
    """Fill the rows if five, four or three columns can."""
    return next((n for n in (5, 4, 3) if num_tiles % n == 0), min(5, num_tiles))


def _own_drawer(sim: Simulation) -> Callable[[], np.ndarray]:
    filmed = require(sim, Filmed, "filmed")
    return lambda: filmed.frames(sim.suite.film_camera, PIXELS)


def _mujoco_drawer(sim: Simulation) -> Callable[[], np.ndarray]:
    scenes = require(sim, MujocoScenes, "filmed by MuJoCo's renderer")
    own = [scenes.scene_model(slot) for slot in range(sim.num_slots)]
    stages = {id(model): _stage(model) for model in {id(model): model for model in own}.values()}
    frames = np.empty((sim.num_slots, PIXELS, PIXELS, 3), np.uint8)

    def draw() -> np.ndarray:
        for slot, model in enumerate(own):
            renderer, drawn, data = stages[id(model)]
            scenes.write_scene(slot, drawn, data)
            renderer.update_scene(data, sim.suite.film_camera)
            renderer.render(out=frames[slot])
        return frames

    return draw


def _stage(model: mujoco.MjModel) -> tuple[mujoco.Renderer, mujoco.MjModel, mujoco.MjData]:
    drawn = copy(model)
    return mujoco.Renderer(drawn, PIXELS, PIXELS), drawn, mujoco.MjData(drawn)


_DRAWERS = {"own": _own_drawer, "mujoco": _mujoco_drawer}
