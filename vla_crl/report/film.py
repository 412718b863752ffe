"""Film a policy or the expert at work: episodes beside each other."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Literal

import mujoco
import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.progress import console
from vla_crl.report.video import GridVideo
from vla_crl.rollout.agents import Agent
from vla_crl.sim.backends import find_suite
from vla_crl.sim.divergence import DIVERGENCES, save_divergences
from vla_crl.sim.simulation import ScriptedSimulation
from vla_crl.sim.task_suite import make_renderers

Renderer = Literal["own", "mujoco"]
PIXELS = 256
"""Height and width of a filmed tile; the policy sees its own smaller images."""


def record_rollouts(
    agent: Agent,
    suite_name: str,
    tasks: Sequence[str] | None = None,
    *,
    num_episodes: int,
    output: Path,
    title: str = "",
    renderer: Renderer = "own",
) -> list[bool]:
    """Write an mp4 of deterministic episodes, one tile each, tasks one after another.

    Args:
        agent: Who acts.
        suite_name: Suite of the catalogue.
        tasks: Task names; all tasks of the suite by default.
        num_episodes: Episodes a task, on the first test states.
        output: The mp4 file.
        title: Line above the tiles.
        renderer: "own" needs no graphics and is fast; "mujoco" draws with OpenGL: smooth edges,
            shadows, some tens of frames a second in software.

    Returns:
        Whether each tile's episode succeeded.

    Raises:
        ConfigError: An unknown task, or more episodes than test states.
    """
    suite = find_suite(suite_name)
    if not 1 <= num_episodes <= len(suite.test_ids):
        raise ConfigError(
            f"rollout: {num_episodes} episodes a task, expected 1 to {len(suite.test_ids)}"
        )
    indices = [suite.task_index(name) for name in tasks or [task.name for task in suite.tasks]]
    tile_tasks = np.repeat(indices, num_episodes)
    sim = suite.simulate(len(tile_tasks))
    slots = np.arange(sim.num_slots)
    sim.reset(
        slots, tasks=tile_tasks, state_ids=np.tile(suite.test_ids[:num_episodes], len(indices))
    )
    act, draw = agent(sim), _DRAWERS[renderer](sim)
    outcomes: list[bool | None] = [None] * sim.num_slots
    captions = sim.instructions()
    running = slots
    with GridVideo(
        output,
        captions,
        title=title,
        num_columns=_num_columns(len(captions)),
        fps=round(suite.control_hz),
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
    sim.close()
    return [bool(outcome) for outcome in outcomes]


def _num_columns(num_tiles: int) -> int:
    """Fill the rows if five, four or three columns can."""
    return next((n for n in (5, 4, 3) if num_tiles % n == 0), min(5, num_tiles))


def _own_drawer(sim: ScriptedSimulation) -> Callable[[], np.ndarray]:
    suite, scenes = sim.suite, np.unique(sim.suite.scene_of_task[sim.tasks])
    renderers = make_renderers(suite, [suite.film_camera], PIXELS, scenes)
    frames = np.empty((sim.num_slots, 1, PIXELS, PIXELS, 3), np.uint8)

    def draw() -> np.ndarray:
        sim.render(renderers, np.arange(sim.num_slots), frames)
        return frames[:, 0]

    return draw


def _mujoco_drawer(sim: ScriptedSimulation) -> Callable[[], np.ndarray]:
    scenes, camera = sim.suite.scene_of_task[sim.tasks].tolist(), sim.suite.film_camera
    models = {scene: copy(sim.suite.model(scene)) for scene in sorted(set(scenes))}
    renderers = {s: mujoco.Renderer(model, PIXELS, PIXELS) for s, model in models.items()}
    datas = {scene: mujoco.MjData(model) for scene, model in models.items()}
    frames = np.empty((sim.num_slots, PIXELS, PIXELS, 3), np.uint8)

    def draw() -> np.ndarray:
        for slot, scene in enumerate(scenes):
            sim.write_scene(slot, models[scene], datas[scene])
            renderers[scene].update_scene(datas[scene], camera)
            renderers[scene].render(out=frames[slot])
        return frames

    return draw


_DRAWERS = {"own": _own_drawer, "mujoco": _mujoco_drawer}


def film_run(
    agents: Mapping[str, Agent],
    suite_name: str,
    tasks: Sequence[str],
    *,
    num_episodes: int,
    folder: Path,
) -> None:
    """Film the same test episodes with several agents, one file of `folder` each.

    Args:
        agents: By name, e.g. "before training"; the name becomes the title and, behind the
            agent's number, the file's name.
        suite_name: Suite of the catalogue.
        tasks: Task names.
        num_episodes: Episodes a task.
        folder: Where the mp4 files go.
    """
    for number, (name, agent) in enumerate(agents.items()):
        record_rollouts(
            agent,
            suite_name,
            tasks,
            num_episodes=num_episodes,
            output=folder / f"{number}_{name.replace(' ', '_')}.mp4",
            title=name.capitalize(),
        )
