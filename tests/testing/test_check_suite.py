import importlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from vla_crl.catalog import list_suites, suite_path
from vla_crl.config import read_toml
from vla_crl.contracts import ChunkResult, Observation
from vla_crl.errors import SpecError
from vla_crl.sim.calls import chosen_slots
from vla_crl.sim.native.goals import Goal
from vla_crl.sim.native.scene_config import SceneConfig, ThingConfig
from vla_crl.sim.native.suite import CollectionConfig, Suite, load_suite, read_suite
from vla_crl.sim.simulation import Indices
from vla_crl.testing import FakeSuite, check_suite, fake_suite
from vla_crl.testing.fake_sim import FakeEpisode, FakeSim


def changed(suite: Suite, change: Callable[[SceneConfig], SceneConfig]) -> Suite:
    """Return a suite whose scenes follow a changed file."""

    def scene(old):
        config = change(old.config)
        names = [thing.name for thing in old.things]
        things = tuple(thing for thing in config.things if thing.name in names)
        return replace(old, config=config, things=things)

    return replace(suite, scenes=tuple(scene(old) for old in suite.scenes))


@pytest.mark.parametrize(
    "name", [n for n in list_suites() if "backend" not in read_toml(suite_path(n) / "suite.toml")]
)
def test_a_shipped_suite_is_ready(name: str):
    is_collection = isinstance(read_suite(suite_path(name) / "suite.toml"), CollectionConfig)
    check_suite(load_suite(name), num_states=1 if is_collection else 2)


def test_a_suite_that_its_expert_cannot_solve_is_refused():
    hurried = changed(load_suite("tabletop_object"), lambda config: replace(config, horizon=5))
    with pytest.raises(SpecError, match="succeeds in 0 % of episodes, expected 95 %"):
        check_suite(hurried, num_states=1)


def test_a_task_that_is_done_before_it_begins_is_refused():
    suite = load_suite("tabletop_goal")
    first, *others = suite.tasks
    begun = replace(first, goal=Goal("closed", ("drawer",)))
    with pytest.raises(SpecError, match="succeeds before anything is done, 'open_drawer', in 2"):
        check_suite(replace(suite, tasks=(begun, *others)), num_states=1)


def test_a_suite_whose_initial_states_repeat_is_refused():
    def nail_down(config: SceneConfig) -> SceneConfig:
        def nailed(number: int, thing: ThingConfig) -> ThingConfig:
            place = (-0.12 + 0.1 * (number % 3), -0.12 + 0.1 * (number // 3))
            return replace(thing, low_m=place, high_m=place)

        things = tuple(nailed(number, thing) for number, thing in enumerate(config.things))
        return replace(config, things=things)

    with pytest.raises(SpecError, match="'tabletop_object' has two initial states with one layout"):
        check_suite(changed(load_suite("tabletop_object"), nail_down), num_states=1)


def test_what_is_no_suite_is_refused():
    with pytest.raises(SpecError, match="check_suite: got 'tabletop_goal', expected what find_sui"):
        check_suite("tabletop_goal")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="check_suite: num_states is 0, expected at least 1"):
        check_suite(load_suite("tabletop_goal"), num_states=0)


def test_success_must_reach_what_is_asked_for():
    with pytest.raises(SpecError, match="expected nan %"):
        check_suite(load_suite("tabletop_goal"), num_states=1, min_success=float("nan"))


@pytest.mark.parametrize(
    ("extras", "expert", "lacking"),
    [
        (["Grounded", "Filmed", "Resumable"], "BACKEND", []),
        (["Filmed"], "BACKEND", ["states (Resumable)", "positions of things (Grounded)"]),
        (["Grounded", "Resumable"], "WITHOUT_EXPERT", ["frames (Filmed)", "a scripted expert"]),
    ],
)
def test_what_a_backend_does_not_offer_is_told_not_demanded(extras, expert, lacking):
    suite = fake_suite(extras=extras, backend=f"vla_crl.testing.fake_worlds:{expert}")
    assert [line.partition(":")[0] for line in check_suite(suite)] == lacking


class Unsteady(FakeSim):
    """Every episode begins elsewhere."""

    begun = 0

    def begin(self, slot: int, task: int, state_id: int) -> FakeEpisode:
        self.begun += 1
        return super().begin(slot, task, self.begun)


class Crowded(FakeSim):
    """The more slots, the less an action does."""

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        return super().step_chunk(np.clip(actions, -1, 1) / self.num_slots, slots)


class Favouring(FakeSim):
    """The first slot is faster."""

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        speed = np.where(chosen_slots(self, slots) == 0, 1.0, 0.5)
        return super().step_chunk(np.clip(actions, -1, 1) * speed[:, None, None], slots)


class Unclipped(FakeSim):
    """What lies beyond 1 counts."""

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        return super().step_chunk(actions / 3, slots)


class Eager(FakeSim):
    """It draws whether asked to or not."""

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        return super().observe(slots)


class Forgetful(FakeSim):
    """Episodes that go on do so from their beginning."""

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        super().set_states(
            states | {"num_steps": 0 * states["num_steps"], "outcome": 0 * states["outcome"]}
        )


class Blurred(FakeSim):
    """Its films are no pictures."""

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        return super().frames(camera, pixels, slots).astype(float)


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        (Unsteady, "'fake' does not repeat its initial states"),
        (Crowded, "'fake' does other things in another slot, or where there are more slots"),
        (Favouring, "'fake' does other things in two slots that began alike"),
        (Unclipped, r"'fake' does not clip actions to \[-1, 1\]"),
        (Eager, "'fake' draws without being asked to"),
        (Forgetful, "'fake' goes on differently from get_states in another simulation"),
        (Blurred, r"'fake' films frames of float64 .* expected uint8 \(1, 32, 32, 3\)"),
    ],
)
def test_a_simulation_that_breaks_the_contract_is_refused(
    monkeypatch: pytest.MonkeyPatch, simulation: type[FakeSim], message: str
):
    module = importlib.import_module("vla_crl.testing.check_suite")
    monkeypatch.setattr(module, "simulate", simulation)
    with pytest.raises(SpecError, match=message):
        check_suite(fake_suite())


class Overlapping(FakeSuite):
    """Tests begin where training ends, a state too early."""

    @property
    def test_ids(self) -> range:
        return range(self.train_ids.stop - 1, self.train_ids.stop + 4)


def test_a_suite_that_tests_on_training_states_is_refused():
    suite = fake_suite()
    overlapping = Overlapping(name="fake", description="", config=suite.config, tasks=suite.tasks)
    with pytest.raises(SpecError, match=r"tests on initial states it trains on: \[999\]"):
        check_suite(overlapping)


def test_tasks_must_be_told_apart_and_told():
    suite = fake_suite()
    with pytest.raises(SpecError, match="'fake' has no task, or one twice"):
        check_suite(replace(suite, tasks=suite.tasks[:1] * 2))
    silent = replace(suite.tasks[0], instruction="")
    with pytest.raises(SpecError, match="tells task 'reach_red' by an instruction of 0 characters"):
        check_suite(replace(suite, tasks=(silent,)))
