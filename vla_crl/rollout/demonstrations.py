"""Scripted demonstrations with perturbed execution, clean labels and grounding labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval, MinLen

from vla_crl.compute import ComputeConfig
from vla_crl.config import Fraction, Settings
from vla_crl.contracts import JOINT_TARGET, POSE_ACTION, Embodiment
from vla_crl.errors import ConfigError
from vla_crl.hardware import require_memory
from vla_crl.progress import track
from vla_crl.rollout.lanes import close_lanes, run_lanes, simulate_lanes
from vla_crl.sim.backends import expert_of
from vla_crl.sim.divergence import DIVERGENCES, save_divergences
from vla_crl.sim.grounding import ground
from vla_crl.sim.simulation import Expert, Grounded, Simulation, require
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.variation import VariationConfig

QUICKEST = 0.1
"""Part of the horizon after which hardly an expert has succeeded yet."""
ROTATIONS = POSE_ACTION[3:6]
Sigma = Annotated[float, Interval(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True)
class PerturbationConfig(Settings):
    """Noise on executed actions; the labels stay the expert's (as in DART, arXiv 1703.09327)."""

    sigmas: Annotated[tuple[Sigma, ...], MinLen(1)] = (0.0, 0.1, 0.2, 0.3)
    """Standard deviations of the action noise; one is drawn per episode."""
    burst_probability: Fraction = 0.1
    """Probability that a step gets the burst noise instead."""
    burst_sigma: Sigma = 0.8
    """Standard deviation of a burst."""
    rotation_scale: Sigma = 0.3
    """Factor on the noise of rotations of the end effector."""
    joint_scale: Sigma = 0.03
    """Factor on the noise of targets of joints: a part of a joint's range moves the end effector
    far more than the same part of its greatest step. With this the expert fails about as often."""
    flip_probability: Fraction = 0.01
    """Probability that a binary number, the gripper's command, is reversed in a step."""


@dataclass(frozen=True)
class Demonstrations:
    """S recorded steps of E episodes, in episode order.

    Attributes:
        instructions: What episodes were told to do, by number.
        things: Names of what instructions talk about, by number.
        images: [S, cameras, H, W, 3] uint8.
        state: [S, numbers of the state] float32.
        label: [S, numbers of an action] float32, what to do in the visited state: of the scripted
            expert its clean action, whatever was executed.
        task: [S] number of the step's instruction.
        named: [S, 2] numbers of the things that the instruction names and that matter now: what
            is to be moved, and where to, or -1.
        object_uv: [S, cameras, things, 2] float32, see `Grounding`.
        object_visible: [S, cameras, things] bool.
        has_grounding: [S] bool, False where nobody knows what is where: nothing is visible then.
        episode_end: [S] index one past the last step of the step's episode.
        episode_success: [E] bool, True where nobody has said otherwise.
    """

    instructions: tuple[str, ...]
    things: tuple[str, ...]
    images: np.ndarray
    state: np.ndarray
    label: np.ndarray
    task: np.ndarray
    named: np.ndarray
    object_uv: np.ndarray
    object_visible: np.ndarray
    has_grounding: np.ndarray
    episode_end: np.ndarray
    episode_success: np.ndarray

    def __len__(self) -> int:
        return len(self.state)

    @property
    def num_episodes(self) -> int:
        """How many episodes there are, E."""
        return len(self.episode_success)


@dataclass(frozen=True)
class _Recorder:
    """All episodes so far.

    Attributes:
        steps: [E] the steps of each.
        success: [E] bool.
    """

    steps: list[list[dict[str, np.ndarray]]]
    success: np.ndarray


def collect_demonstrations(
    suite: TaskSuite,
    num_episodes: int,
    *,
    seed: int = 0,
    perturbation: PerturbationConfig | None = None,
    variation: VariationConfig | None = None,
    num_slots: int = 128,
    image_size: int = 64,
    num_threads: int = 2,
) -> Demonstrations:
    """Run the scripted expert on all tasks in turn, on training initial states.

    Failures are kept: their labels are still what the expert would do.

    Args:
        suite: Its tasks are demonstrated.
        num_episodes: E.
        seed: Seed of perturbations and of the order of initial states.
        perturbation: Noise on executed actions; the default noise if None.
        variation: Domain randomisation of tasks without a variation of their own.
        num_slots: Environments stepped together; does not change a single episode.
        image_size: Height and width of each camera image, pixels.
        num_threads: For physics and rendering, which is on the CPU.

    Raises:
        ConfigError: `num_episodes` is not positive.
    """
    if num_episodes < 1:
        raise ConfigError(f"collect: num_episodes is {num_episodes}, expected at least 1")
    picture = 3 * len(suite.embodiment.cameras) * image_size**2
    require_memory(
        num_episodes * suite.horizon * QUICKEST * picture, f"pictures of {num_episodes} episodes",
        "choose fewer episodes or smaller pictures",
    )  # fmt: skip
    sims = simulate_lanes(
        suite,
        min(num_slots, num_episodes),
        image_size=image_size,
        compute=ComputeConfig(num_sim_threads=num_threads),
        variation=variation,
    )
    rng, ids = np.random.default_rng(seed), suite.train_ids
    # Drawn anew each time through, or every task would meet the same states again.
    order = np.concatenate([rng.permutation(ids) for _ in range(-(-num_episodes // len(ids)))])
    tasks = np.arange(num_episodes) % len(suite.tasks)
    try:
        with track("demonstrations", num_episodes) as progress:

            def watch(sim: Simulation, num_ended: int) -> None:
                progress.advance(num_ended)
                for line in save_divergences(sim.divergences, DIVERGENCES):
                    progress.print(line)

            return record_expert(
                sims, tasks, order[:num_episodes], seed=[seed], perturbation=perturbation,
                watch=watch,
            )  # fmt: skip
    finally:
        close_lanes(sims)


def record_expert(
    sims: Sequence[Simulation],
    tasks: np.ndarray,
    state_ids: np.ndarray,
    *,
    seed: Sequence[int],
    perturbation: PerturbationConfig | None = None,
    watch: Callable[[Simulation, int], None] = lambda sim, num_ended: None,
) -> Demonstrations:
    """Run the scripted expert in episodes that are named.

    Args:
        sims: Of one suite; their episodes are lost.
        tasks: [E] indices.
        state_ids: [E] initial states.
        seed: Of the perturbations, together with the number of the episode.
        perturbation: Noise on executed actions; the default noise if None.
        watch: Told after every step of a simulation how many episodes have ended there.

    Raises:
        ConfigError: The suite has no expert, or does not say where things are.
    """
    noise, suite, num_episodes = perturbation or PerturbationConfig(), sims[0].suite, len(tasks)
    generators = [np.random.default_rng([*seed, episode]) for episode in range(num_episodes)]
    sigma = [float(generator.choice(noise.sigmas)) for generator in generators]
    recorder = _Recorder([[] for _ in range(num_episodes)], np.zeros(num_episodes, dtype=bool))

    def play(lane: int) -> Iterator[None]:
        """Record every episode whose number is the lane's."""
        sim = sims[lane]
        expert, labels = expert_of(sim), require(sim, Grounded, "labelled")
        episode_of, queue = np.zeros(sim.num_slots, dtype=np.int64), lanes[lane]

        def start(slots: np.ndarray) -> np.ndarray:
            nonlocal queue
            episodes, queue = queue[: len(slots)], queue[len(slots) :]
            slots = slots[: len(episodes)]
            sim.reset(slots, tasks=tasks[episodes], state_ids=state_ids[episodes])
            episode_of[slots] = episodes
            return slots

        running = start(np.arange(sim.num_slots))
        while len(running):
            episodes = episode_of[running]
            steps = [recorder.steps[episode] for episode in episodes]
            actions = _record_step(sim, labels, expert, running, steps)
            executed = np.stack(
                [
                    _perturb(generators[episode], action, sigma[episode], noise, suite.embodiment)
                    for episode, action in zip(episodes, actions, strict=True)
                ]
            )
            result = sim.step_chunk(executed[:, None], running)
            is_over = result.terminated | result.truncated
            recorder.success[episodes] = result.success
            watch(sim, int(is_over.sum()))
            running = np.concatenate([running[~is_over], start(running[is_over])])
            yield

    lanes = [np.arange(lane, num_episodes, len(sims)) for lane in range(len(sims))]
    run_lanes(play, range(len(sims)))
    return _concatenate(suite, recorder)


def _record_step(
    sim: Simulation,
    grounded: Grounded,
    expert: Expert,
    slots: np.ndarray,
    episodes: list[list[dict[str, np.ndarray]]],
) -> np.ndarray:
    """Append what each slot sees, with all labels, to its episode; return the expert's actions."""
    observation, actions = sim.observe(slots), expert.act(slots)
    labels = ground(grounded, slots)
    tasks = sim.tasks[slots]
    named = expert.named(slots)
    for row, steps in enumerate(episodes):
        steps.append(
            {
                "images": observation.images[row],
                "state": observation.state[row],
                "label": actions[row].astype(np.float32),
                "task": tasks[row],
                "named": named[row],
                "object_uv": labels.uv[row],
                "object_visible": labels.visible[row],
            }
        )
    return actions


def _perturb(
    rng: np.random.Generator,
    action: np.ndarray,
    sigma: float,
    noise: PerturbationConfig,
    robot: Embodiment,
) -> np.ndarray:
    if rng.random() < noise.burst_probability:
        sigma = noise.burst_sigma
    is_binary, executed = robot.is_binary, action.copy()
    scale = np.array([_scale(name, noise) for name in robot.action])[~is_binary]
    executed[~is_binary] += sigma * scale * rng.standard_normal(len(scale))
    is_flipped = rng.random(is_binary.sum()) < noise.flip_probability
    executed[is_binary] *= np.where(is_flipped, -1.0, 1.0)
    return np.clip(executed, -1.0, 1.0)


def _scale(name: str, noise: PerturbationConfig) -> float:
    if name in ROTATIONS:
        return noise.rotation_scale
    return noise.joint_scale if name.startswith(JOINT_TARGET) else 1.0


def _concatenate(suite: TaskSuite, recorder: _Recorder) -> Demonstrations:
    lengths = np.array([len(steps) for steps in recorder.steps])
    arrays = {}
    for name, example in list(recorder.steps[0][0].items()):
        arrays[name] = np.empty((lengths.sum(), *np.shape(example)), np.asarray(example).dtype)
        every_step = (step for steps in recorder.steps for step in steps)
        for row, step in enumerate(every_step):
            arrays[name][row] = step.pop(name)  # what is copied is let go: pictures fill the memory
    return Demonstrations(
        instructions=tuple(task.instruction for task in suite.tasks),
        things=suite.things,
        **arrays,
        has_grounding=np.ones(lengths.sum(), dtype=bool),
        episode_end=np.repeat(np.cumsum(lengths), lengths),
        episode_success=recorder.success,
    )
