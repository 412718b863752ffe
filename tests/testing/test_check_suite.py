from collections.abc import Callable
from dataclasses import replace

import pytest

from vla_crl.catalog import list_suites, suite_path
from vla_crl.errors import SpecError
from vla_crl.sim.native.goals import Goal
from vla_crl.sim.native.scene_config import SceneConfig, ThingConfig
from vla_crl.sim.native.suite import CollectionConfig, Suite, load_suite, read_suite
from vla_crl.testing import check_suite


def changed(suite: Suite, change: Callable[[SceneConfig], SceneConfig]) -> Suite:
    """Return a suite whose scenes follow a changed file."""

    def scene(old):
        config = change(old.config)
        names = [thing.name for thing in old.things]
        things = tuple(thing for thing in config.things if thing.name in names)
        return replace(old, config=config, things=things)

    return replace(suite, scenes=tuple(scene(old) for old in suite.scenes))


@pytest.mark.parametrize("name", [n for n in list_suites() if not n.startswith("metaworld_")])
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
    with pytest.raises(SpecError, match="'open_drawer' of 'tabletop_goal' succeeds before any"):
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
