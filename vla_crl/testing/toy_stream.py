"""A stream of toy tasks that is learnt in a second: methods are tried on it, not compared.

A task shows features around a centre of its own, which the centres of all tasks resemble, and wants
an action of its own. So a policy that is trained on one task after another forgets.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_checks import (
    check_method_fits,
    method_groups,
    method_metrics,
    method_state,
    method_stream,
    used_too_early,
)
from vla_crl.continual.method_stage import Stage
from vla_crl.continual.random_state import load_rng_state, rng_state
from vla_crl.continual.stream import TaskStream
from vla_crl.contracts import Observation
from vla_crl.errors import ConfigError
from vla_crl.files.state_dicts import join_states, part_of
from vla_crl.models.adapter_bank import AdapterBank
from vla_crl.models.lora import AdapterLayout
from vla_crl.models.policy import ActionChunk
from vla_crl.rollout.demonstrations import Demonstrations
from vla_crl.rollout.storage import RolloutStorage
from vla_crl.testing.fake_worlds import Colour, fake_suite
from vla_crl.testing.toy_learning import NUM_ACTIONS, Features, NormalToy, ToyTrace

NUM_FEATURES, WIDTH = 8, 32
STD = 0.3
"""Of the policy's actions."""
REACH = 0.4
"""How near to the wanted action is a success; the wanted actions have length 1."""
NUM_SLOTS = 128
"""Chunks of a rollout; each is an episode."""
SETTINGS = PPOConfig(
    learning_rate=1e-2, value_learning_rate=1e-2, value_warmup_iterations=1, num_epochs=2,
    minibatch_size=64, target_kl=None,
)  # fmt: skip


@dataclass(frozen=True)
class ToyConfig:
    """What is asked of a policy's settings."""

    action_horizon: int = 1
    execution_horizon: int = 1


class ToyPolicy(NormalToy):
    """A normal action by a small network on a frozen backbone."""

    config = ToyConfig()

    def __init__(self, seed: int = 0, *, rank: int | None = None) -> None:
        """Build with weights of a seed.

        Args:
            seed: Of the weights.
            rank: Of an adapter on the frozen network, or None to train the network itself.
        """
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = nn.Linear(NUM_FEATURES, NUM_FEATURES)
            self.head = nn.Sequential(
                nn.Linear(NUM_FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, NUM_ACTIONS)
            )
            self.value_head = nn.Linear(NUM_FEATURES, 1)
            nn.init.orthogonal_(self.backbone.weight)
        self.register_buffer("log_std", torch.full((NUM_ACTIONS,), math.log(STD)), persistent=False)
        self.backbone.requires_grad_(False)
        self.adapters = AdapterBank(cast(Any, self))
        if rank is not None:
            self.head.requires_grad_(False)
            layers = [f"head.{number}" for number in (0, 2)]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                layout = AdapterLayout(scale=1.0, ranks=dict.fromkeys(layers, rank))
                self.adapters.add("default", layout)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.weight.device

    def tokenize(self, observation: Observation) -> Features:
        """Return what is seen: the state, of which features are made up."""
        return Features(torch.from_numpy(observation.state))

    def encode(self, seen: Features, /) -> Features:
        """Return the context of observations."""
        return Features(self.backbone(seen.features))

    @torch.no_grad()
    def act(
        self, context: Features, *, deterministic: bool, generator: torch.Generator | None = None
    ) -> ActionChunk:
        """Choose an action for every observation."""
        draws = generator or torch.Generator().manual_seed(0)
        trace = ToyTrace(self.mean(context)) if deterministic else self.sample(context, draws)
        found = self.evaluate_actions(context, trace)
        return ActionChunk(trace.sample, trace, found.density.log_prob(), found.value)

    def mean(self, context: Features) -> Tensor:
        """Return [B, 1, 2] the mean of the action."""
        return self.head(context.features)[:, None]


class ToyTraining:
    """Training of a method on the toy tasks; may be stopped between iterations.

    Attributes:
        policy: Trained.
        method: Likewise.
        stream: As the method wants it.
        rates: [T + 1, T] success, of stages that are over; others are NaN.
        rows: What every iteration adds to metrics.jsonl.
    """

    def __init__(
        self,
        method: ContinualMethod,
        folder: Path,
        *,
        num_tasks: int = 3,
        num_iterations: int = 20,
        seed: int = 0,
        rank: int | None = None,
        name: str = "toy",
    ) -> None:
        """Begin with stage 0.

        Args:
            method: New.
            folder: For its memory.
            num_tasks: T, up to 4.
            num_iterations: Of a stage, a task.
            seed: Of everything.
            rank: As of `ToyPolicy`; then the network itself is not trained.
            name: What errors call the method.
        """
        self._name = name
        self.policy, self.method = ToyPolicy(seed, rank=rank), method
        self._folder, self._seed, self._num_iterations = folder, seed, num_iterations
        self._suite = fake_suite(train=get_args(Colour)[:num_tasks], heldout=(), horizon=1)
        names = tuple(task.name for task in self._suite.tasks)
        stream = TaskStream(train_tasks=names, episodes_per_task=num_iterations * NUM_SLOTS)
        self.stream = method_stream(method, name, stream)
        self._check_method()
        draw = np.random.default_rng(1)  # the tasks are the same for all seeds
        own = np.linalg.qr(draw.standard_normal((NUM_FEATURES, NUM_FEATURES)))[0]
        self._centres = torch.from_numpy(own[:num_tasks] + own[-1]).float()
        angles = 2.0 * math.pi * torch.arange(num_tasks) / num_tasks
        self._wanted = torch.stack([angles.cos(), angles.sin()], dim=1)
        self.rates = np.full((num_tasks + 1, num_tasks), np.nan)
        self.rates[0] = self._success()
        self.rows: list[dict[str, float]] = []

    def _check_method(self) -> None:
        """See whether the method fits, as a run does before it begins."""
        context = self.policy.encode(Features(torch.zeros(1, NUM_FEATURES)))
        trace = self.policy.sample(context, torch.Generator())
        found, learner = self.policy.evaluate_actions(context, trace), PPO(self.policy, SETTINGS)
        check_method_fits(self.method, self._name, self.policy, learner, found)

    def train(self) -> np.ndarray:
        """Run all stages and return `rates`."""
        for number, _ in self.stream.stages():
            self.begin(number)
            for _ in range(self.num_iterations):
                self.iterate()
            self.close()
        return self.rates

    @property
    def num_iterations(self) -> int:
        """Of the stage that has begun."""
        return self._num_iterations * len(self._tasks)

    def begin(self, number: int) -> None:
        """Begin a stage."""
        self._number, names = number, dict(self.stream.stages())[number]
        self._tasks = [self._suite.task_index(name) for name in names]
        self._draws = torch.Generator().manual_seed(1000 * self._seed + number)
        self._num_episodes, self._ppo = 0, None
        torch.manual_seed(1000 * self._seed + number)
        self._stage = Stage(
            number=number,
            num_stages=self.stream.num_stages,
            tasks=names,
            suite=self._suite,
            collect=self._collect_fresh,
            train=self._train_more,
            demonstrations=self._demonstrate,
            generator=torch.Generator().manual_seed(self._seed),
            rng=np.random.default_rng([self._seed, number, 1]),
            folder=self._folder,
        )
        self.method.before_task(self.policy, self._stage)
        groups = PPO.param_groups(self.policy, SETTINGS)
        groups = method_groups(self.method, self._name, self.policy, groups)
        self._ppo = PPO(self.policy, SETTINGS, groups)

    def iterate(self) -> None:
        """Collect and update once."""
        metrics = self._begun.update(self._collect(), self.method, self._draws)
        self.rows.append(metrics | dict(method_metrics(self.method, self._name, metrics)))

    def close(self) -> None:
        """End the stage."""
        self.method.after_task(self.policy, self._stage)
        self.rates[self._number] = self._success()

    def state(self) -> dict[str, Tensor]:
        """Return all that the rest of the stage depends on."""
        state = join_states(
            {
                "policy": self.policy.state_dict(),
                "method": method_state(self.method, self._name),
                "ppo": self._begun.state_dict(),
                "random": {
                    "draws": self._draws.get_state(),
                    "rng": rng_state(self._stage.rng),
                    "generator": self._stage.generator.get_state(),
                    "global": torch.get_rng_state(),
                    "episodes": torch.tensor(self._num_episodes),
                },
            }
        )
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where another one was in this stage."""
        self.policy.load_state_dict(part_of(state, "policy"))
        self.method.load_state_dict(part_of(state, "method"))
        self._begun.load_state_dict(part_of(state, "ppo"))
        random = part_of(state, "random")
        load_rng_state(self._stage.rng, random["rng"])
        self._draws.set_state(random["draws"])
        self._stage.generator.set_state(random["generator"])
        torch.set_rng_state(random["global"])
        self._num_episodes = int(random["episodes"])

    def _see(self, tasks: Tensor, generator: torch.Generator | None = None) -> Features:
        noise = torch.randn(len(tasks), NUM_FEATURES, generator=generator or self._draws)
        return Features(self._centres[tasks] + 0.1 * noise)

    def _collect(self) -> RolloutStorage:
        tasks = torch.tensor(self._tasks)[torch.arange(NUM_SLOTS) % len(self._tasks)]
        seen = self._see(tasks)
        trace = self.policy.sample(self.policy.encode(seen), self._draws)
        distance = (trace.sample[:, 0] - self._wanted[tasks]).norm(dim=1)
        episode = torch.arange(self._num_episodes, self._num_episodes + NUM_SLOTS)
        self._num_episodes += NUM_SLOTS
        step = self.policy.step(
            seen,
            trace,
            reward=-distance.square(),
            ends=torch.ones(NUM_SLOTS, dtype=torch.bool),
            success=distance < REACH,
            task=tasks,
            episode=episode,
            group=episode,
        )
        rollout = RolloutStorage(1, NUM_SLOTS, step)
        rollout.add(0, step)
        rollout.finish(torch.zeros(1, NUM_SLOTS))
        return rollout

    @property
    def _begun(self) -> PPO:
        """What learns, once it is known what is trained."""
        if self._ppo is None:
            raise used_too_early(self._name)
        return self._ppo

    def _collect_fresh(self) -> RolloutStorage:
        assert self._begun
        rollout = self._collect()
        rollout.compute_advantages(gamma=SETTINGS.gamma, gae_lambda=SETTINGS.gae_lambda)
        return rollout

    def _train_more(self, num_episodes: int) -> None:
        for _ in range(-(-num_episodes // NUM_SLOTS)):
            self._begun.update(self._collect(), self.method, self._draws)

    def _demonstrate(self, task: str, num_episodes: int) -> Demonstrations:
        """Return episodes of one step in which the wanted action is done; the same for a call.

        The state is what a policy sees as features, and pictures are empty.
        """
        if num_episodes < 1:
            raise ConfigError(f"collect: num_episodes is {num_episodes}, expected at least 1")
        number, none = self._suite.task_index(task), np.zeros((num_episodes, 1, 0))
        draws = torch.Generator().manual_seed(self._seed)
        seen = self._see(torch.full((num_episodes,), number), draws)
        return Demonstrations(
            instructions=(self._suite.tasks[number].instruction,),
            things=(),
            images=np.zeros((num_episodes, 1, 1, 1, 3), np.uint8),
            state=seen.features.numpy(),
            label=self._wanted[number].expand(num_episodes, -1).clone().numpy(),
            task=np.zeros(num_episodes, np.int64),
            named=np.full((num_episodes, 2), -1),
            object_uv=np.zeros((*none.shape, 2), np.float32),
            object_visible=none.astype(bool),
            has_grounding=np.zeros(num_episodes, bool),
            episode_end=np.arange(num_episodes) + 1,
            episode_success=np.ones(num_episodes, bool),
        )

    @torch.no_grad()
    def _success(self) -> np.ndarray:
        """Return [T] how often the mean action is near the wanted one."""
        draws, rates = torch.Generator().manual_seed(7), []
        for task in range(len(self._wanted)):
            context = self.policy.encode(self._see(torch.full((NUM_SLOTS,), task), draws))
            with self.policy.adapters.routed(self._suite.tasks[task].name):
                mean = self.policy.mean(context)[:, 0]
            distance = (mean - self._wanted[task]).norm(dim=1)
            rates.append(float((distance < REACH).float().mean()))
        return np.array(rates)
