"""Film a policy or the expert at work: episodes beside each other."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Literal, NamedTuple

import mujoco
import numpy as np

from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError
from vla_crl.progress import console
from vla_crl.report.video import GridVideo
from vla_crl.rollout.agents import Agent
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
    num_episodes: int,
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
        num_episodes: Episodes a task, on the first test states.
        output: The mp4 file.
        compute: With how many threads.
        title: Line above the tiles.
        renderer: "own" needs no graphics and is fast; "mujoco" draws with OpenGL: smooth edges,
            shadows, some tens of frames a second in software.

    Returns:
        Whether each tile's episode succeeded.

    Raises:
        ConfigError: An unknown task, or more episodes than test states.
    """
    tiles = _choose_tiles(suite, tasks, num_episodes)
    with closing(_simulate_tiles(agent, suite, tiles, compute)) as sim:
        return _record(agent, sim, tiles, output, title, renderer)


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


def _choose_tiles(suite: TaskSuite, tasks: Sequence[str] | None, num_episodes: int) -> _Tiles:
    if not 1 <= num_episodes <= len(suite.test_ids):
        raise ConfigError(
            f"rollout: {num_episodes} episodes a task, expected 1 to {len(suite.test_ids)}"
        )
    indices = [suite.task_index(name) for name in tasks or [task.name for task in suite.tasks]]
    ids = np.tile(suite.test_ids[:num_episodes], len(indices))
    return _Tiles(np.repeat(indices, num_episodes), ids)


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
    act, draw = agent(sim), _DRAWERS[renderer](sim)
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
