"""One of the simulations that a collector plays in, and its columns of the rollout."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vla_crl.contracts import ChunkResult
from vla_crl.files.state_dicts import join_states, part_of
from vla_crl.models.context import Context, TokenizedObservation
from vla_crl.models.policy import ActionChunk, VLAPolicy
from vla_crl.rollout.agents import executed
from vla_crl.rollout.episodes import EpisodeSource
from vla_crl.rollout.lanes import lane_generator
from vla_crl.rollout.outcomes import Outcomes
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.simulation import Resumable, Simulation, require

PARTS = ("render", "policy", "physics")
"""Of the time that a lane takes."""
STORED = "stored in the middle of episodes"
"""What a simulation must be able to be where a lane's state is."""


class _Cut(NamedTuple):
    """What slots show at the end of episodes that ran out of time."""

    slots: np.ndarray
    seen: TokenizedObservation


class CollectorLane:
    """Plays the episodes of one source in one simulation.

    Attributes:
        sim: Where.
        source: What to play.
        clock: Chunks so far, of all iterations.
        outcomes: Episodes that ended in the last iteration.
        num_steps: Control steps of the last iteration.
        seconds: Of the last iteration, by part.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        sim: Simulation,
        source: EpisodeSource,
        *,
        first_slot: int,
        place: tuple[int, int],
        seed: int,
        keeps_seen: bool,
        keeps_context: bool,
    ) -> None:
        """Prepare; `begin_all` begins the first episodes.

        Args:
            policy: Acts by sampling.
            sim: Its slots are the lane's.
            source: Nobody else draws from it.
            first_slot: Of the rollout.
            place: The lane's number and how many there are.
            seed: Of the actions, together with the lane's number.
            keeps_seen: Keep observations.
            keeps_context: Keep contexts.
        """
        self.sim, self.source = sim, source
        self._policy, self._first_slot = policy, first_slot
        self._keeps_seen, self._keeps_context = keeps_seen, keeps_context
        self._lane, self._num_lanes = place
        self._generator = lane_generator(seed, self._lane)
        self.clock = 0
        # Of the episode in each slot, see `Outcomes`.
        self._begun, self._episode, self._group, self._num_steps = np.zeros(
            (4, sim.num_slots), np.int64
        )
        self._return = np.zeros(sim.num_slots, np.float32)
        # What is seen at the end of one iteration is seen at the beginning of the next; and where
        # contexts are stored, nothing is trained that they depend on.
        self._keeps_sight = keeps_context
        self._sight: tuple[TokenizedObservation, Context] | None = None
        self._clear()

    def begin_all(self) -> None:
        """Begin a new episode in every slot; what runs there is given up."""
        self._sight = None
        self._begin(np.arange(self.sim.num_slots))

    def collect(self, storage: RolloutStorage, next_values: Tensor) -> Iterator[None]:
        """Fill the lane's columns of the storage and of `next_values` [T, N], without rest."""
        self._clear()
        next_values = next_values[:, self._first_slot :][:, : self.sim.num_slots]
        every, is_over, cut = (
            np.arange(self.sim.num_slots),
            np.zeros(self.sim.num_slots, bool),
            None,
        )
        for step in range(storage.num_steps):
            sight = self._sight or self._look(every, cut, next_values[step - 1])
            self._sight = None
            chunk = self._act(sight[1])
            if step:
                ended, before = torch.from_numpy(is_over).to(storage.device), next_values[step - 1]
                before[:] = torch.where(ended, before, chunk.value)
            result = self._play(storage, step, every, sight, chunk)
            is_over = result.terminated | result.truncated
            cut = self._cut(every[result.truncated])
            self._begin(every[is_over])
            yield
        self._evaluate(cut, next_values[-1])
        # In a batch of its own: after a resume it is looked at again, and has to be rounded alike.
        sight = self._look(every, None, next_values[-1])
        going_on = torch.from_numpy(~is_over).to(storage.device)
        next_values[-1] = torch.where(going_on, self._policy.value(sight[1]), next_values[-1])
        if self._keeps_sight:
            self._sight = sight

    def collect_whole(
        self, storage: RolloutStorage, next_values: Tensor, slots: np.ndarray
    ) -> Iterator[None]:
        """Do the same with one episode in a slot, which rests when that has ended.

        Args:
            storage: To be filled.
            next_values: [T, N] likewise.
            slots: Of the rollout, in which to play; those of other lanes are left to them.
        """
        self._clear()
        self._sight = None
        slots = slots - self._first_slot
        running = slots[(slots >= 0) & (slots < self.sim.num_slots)]
        self._begin(running)
        next_values = next_values[:, self._first_slot :][:, : self.sim.num_slots]
        step, cut = 0, None
        while len(running):
            sight = self._look(running, cut, next_values[step - 1])
            chunk = self._act(sight[1])
            if step:
                next_values[step - 1, torch.from_numpy(running)] = chunk.value
            result = self._play(storage, step, running, sight, chunk)
            cut = self._cut(running[result.truncated])
            running = running[~(result.terminated | result.truncated)]
            step += 1
            yield
        self._evaluate(cut, next_values[step - 1])

    def take_divergences(self) -> list[Divergence]:
        """Return what blew up, and forget it."""
        events = [*self.sim.divergences]
        self.sim.divergences.clear()
        return events

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `load_state_dict` needs to go on in the middle of the episodes.

        Raises:
            ConfigError: The simulation's backend cannot store its state.
        """
        states = require(self.sim, Resumable, STORED).get_states()
        sim = {name: torch.from_numpy(array) for name, array in states.items()}
        return join_states({"sim": sim}) | {
            "num_drawn": torch.tensor(self.source.num_drawn),
            "generator": self._generator.get_state(),
            "clock": torch.tensor(self.clock),
            "begun": torch.from_numpy(self._begun),
            "episode": torch.from_numpy(self._episode),
            "group": torch.from_numpy(self._group),
            "num_steps": torch.from_numpy(self._num_steps),
            "return": torch.from_numpy(self._return),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            SpecError: It is that of other worlds.
        """
        states = {name: tensor.numpy() for name, tensor in part_of(state, "sim").items()}
        require(self.sim, Resumable, STORED).set_states(states)
        self.source.num_drawn = int(state["num_drawn"])
        self._generator.set_state(state["generator"])
        self.clock = int(state["clock"])
        self._sight = None
        self._begun[:], self._episode[:] = state["begun"].numpy(), state["episode"].numpy()
        self._group[:], self._num_steps[:] = state["group"].numpy(), state["num_steps"].numpy()
        self._return[:] = state["return"].numpy()

    def _clear(self) -> None:
        self.outcomes, self.num_steps = Outcomes.none(), 0
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    def _look(
        self, slots: np.ndarray, cut: _Cut | None, values: Tensor
    ) -> tuple[TokenizedObservation, Context]:
        """Show `slots` to the policy, and in the same batch what was cut off, for its `values`."""
        with self._timed("render"):
            observation = self.sim.observe(slots)
        with self._timed("policy"):
            seen = self._policy.tokenize(observation)
            if cut is None:
                return seen, self._policy.encode(seen)
            context = self._policy.encode(TokenizedObservation.cat([seen, cut.seen]))
            values[torch.from_numpy(cut.slots)] = self._policy.value(context[len(seen) :])
            return seen, context[: len(seen)]

    def _cut(self, slots: np.ndarray) -> _Cut | None:
        """Return what episodes see last that ran out of time; their slots are refilled then."""
        if not len(slots):
            return None
        with self._timed("render"):
            observation = self.sim.observe(slots)
        with self._timed("policy"):
            seen = self._policy.tokenize(observation)
            return _Cut(slots, TokenizedObservation.cat([seen]))  # a copy, of what may be reused

    def _evaluate(self, cut: _Cut | None, values: Tensor) -> None:
        """Put the values of what was cut off into `values` [N]."""
        if cut is not None:
            with self._timed("policy"):
                value = self._policy.value(self._policy.encode(cut.seen))
                values[torch.from_numpy(cut.slots)] = value

    def _act(self, context: Context) -> ActionChunk:
        with self._timed("policy"):
            return self._policy.act(context, deterministic=False, generator=self._generator)

    def _play(
        self,
        storage: RolloutStorage,
        step: int,
        slots: np.ndarray,
        sight: tuple[TokenizedObservation, Context],
        chunk: ActionChunk,
    ) -> ChunkResult:
        """Execute a chunk in `slots`, store it, and keep the books of episodes."""
        with self._timed("policy"):
            actions = executed(self._policy, chunk)
        with self._timed("physics"):
            result = self.sim.step_chunk(
                actions, None if len(slots) == self.sim.num_slots else slots
            )
        self._return[slots] += result.reward
        self._num_steps[slots] += result.num_steps
        self.num_steps += int(result.num_steps.sum())
        rows = self._step(slots, sight, chunk, result).to(storage.device)
        storage.add(step, rows, self._first_slot + slots)
        is_over = result.terminated | result.truncated
        self._close(slots[is_over], result.success[is_over])
        self.clock += 1
        return result

    def _step(
        self,
        slots: np.ndarray,
        sight: tuple[TokenizedObservation, Context],
        chunk: ActionChunk,
        result: ChunkResult,
    ) -> Step:
        seen, context = sight
        return Step(
            seen=seen if self._keeps_seen else None,
            context=context if self._keeps_context else None,
            trace=chunk.trace,
            actions=chunk.actions,
            log_probs=chunk.log_prob,
            values=chunk.value,
            reward=torch.from_numpy(result.reward),
            terminated=torch.from_numpy(result.terminated),
            truncated=torch.from_numpy(result.truncated),
            success=torch.from_numpy(result.success),
            episode_return=torch.from_numpy(self._return[slots]),
            task=torch.from_numpy(self.sim.tasks[slots].astype(np.int64)),
            state_id=torch.from_numpy(self.sim.state_ids[slots].astype(np.int64)),
            episode=torch.from_numpy(self._episode[slots]),
            group=torch.from_numpy(self._group[slots]),
        )

    def _close(self, slots: np.ndarray, success: np.ndarray) -> None:
        """Note how the episodes in `slots` ended."""
        if len(slots):
            ended = Outcomes(
                begun=torch.from_numpy(self._begun[slots]),
                episode=torch.from_numpy(self._episode[slots]),
                task=torch.from_numpy(self.sim.tasks[slots].astype(np.int64)),
                state_id=torch.from_numpy(self.sim.state_ids[slots].astype(np.int64)),
                group=torch.from_numpy(self._group[slots]),
                num_steps=torch.from_numpy(self._num_steps[slots]),
                success=torch.from_numpy(success),
            )
            self.outcomes = Outcomes.cat([self.outcomes, ended])

    def _begin(self, slots: np.ndarray) -> None:
        """Begin the source's next episodes in `slots`; lanes number theirs in turn."""
        first = self.source.num_drawn
        drawn = self.source.next(len(slots))
        with self._timed("physics"):
            self.sim.reset(slots, tasks=drawn.task.numpy(), state_ids=drawn.state_id.numpy())
        self._episode[slots] = np.arange(first, first + len(slots)) * self._num_lanes + self._lane
        self._group[slots] = drawn.group.numpy() * self._num_lanes + self._lane
        self._begun[slots], self._num_steps[slots], self._return[slots] = self.clock, 0, 0.0

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[part] += perf_counter() - started
