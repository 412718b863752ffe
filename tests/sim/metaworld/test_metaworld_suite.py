"""Definitions of the Meta-World suites, most of it without the package."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_crl.catalog import catalog_dir, suite_path
from vla_crl.contracts import POSE_ACTION
from vla_crl.errors import ConfigError
from vla_crl.sim import backends
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.metaworld import models
from vla_crl.sim.metaworld.suite import MetaWorldSuite, read_metaworld
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.variation import VariationConfig

SUITES = {"metaworld_mt10": 10, "metaworld_mt50": 50, "metaworld_cw10": 10}
CW10 = (
    "hammer", "push-wall", "faucet-close", "push-back", "stick-pull", "handle-press-side", "push",
    "shelf-place", "window-close", "peg-unplug-side",
)  # fmt: skip
"""Wolczyk et al. 2021, Continual World, in the order of its streams."""
needs_metaworld = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="pip install --editable '.[metaworld]'"
)


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def found(name: str):
        return None if name == "metaworld" else find_spec(name)

    monkeypatch.setattr(models.importlib.util, "find_spec", found)


@pytest.fixture
def read_changed(tmp_path: Path) -> Callable[[str, str], MetaWorldSuite]:
    """Return a function that reads the suite with one text of its file replaced."""

    def read(old: str, new: str) -> MetaWorldSuite:
        file = Path(shutil.copy(suite_path("metaworld_mt10") / "suite.toml", tmp_path))
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")
        return read_metaworld(file)

    return read


@pytest.mark.parametrize("name", SUITES)
def test_tasks_can_be_listed_without_the_package(name: str, without_package: None):
    suite = find_suite(name)
    assert len(suite.tasks) == SUITES[name]
    assert len({task.instruction for task in suite.tasks}) == SUITES[name]
    assert not set(suite.train_ids) & set(suite.test_ids)


def test_the_stream_of_continual_world_keeps_its_order():
    assert [t.name for t in find_suite("metaworld_cw10").tasks] == [f"{name}-v3" for name in CW10]


def test_a_task_is_told_the_same_in_every_suite():
    told = {t.name: t.instruction for t in find_suite("metaworld_mt50").tasks}
    for name in SUITES:
        assert all(told[t.name] == t.instruction for t in find_suite(name).tasks)


def test_a_controller_is_chosen_behind_the_suites_name():
    suite = find_suite("metaworld_mt10")
    assert suite.controllers == ("eef_pose", "eef_position")
    assert suite.embodiment.action == POSE_ACTION
    four = find_suite("metaworld_mt10@eef_position")
    assert (four.name, four.tasks[0].name) == ("metaworld_mt10@eef_position", "reach-v3")
    assert four.embodiment.action == ("delta_x", "delta_y", "delta_z", "gripper")
    assert four.embodiment.state == suite.embodiment.state
    assert four.embodiment.cameras == suite.embodiment.cameras
    back = four.with_controller("eef_pose")
    assert (back.name, back.embodiment) == ("metaworld_mt10@eef_pose", suite.embodiment)


def test_an_unknown_controller_names_the_nearest():
    with pytest.raises(ConfigError, match="'metaworld_mt10': unknown controller 'eef_positon'. Di"):
        find_suite("metaworld_mt10@eef_positon")
    with pytest.raises(ConfigError, match="Did you mean 'eef_pose'"):
        find_suite("metaworld_mt10@eef_position").with_controller("eef_pos")


@needs_metaworld
def test_the_suites_are_meta_worlds():
    from metaworld.env_dict import MT10_V3, MT50_V3

    assert [t.name for t in find_suite("metaworld_mt10").tasks] == list(MT10_V3)
    assert {t.name for t in find_suite("metaworld_mt50").tasks} == set(MT50_V3)


@pytest.mark.parametrize("name", SUITES)
def test_the_task_card_says_what_the_suite_file_says(name: str):
    suite = find_suite(name)
    card = (catalog_dir("envs") / name / "README.md").read_text(encoding="utf-8")
    for task in suite.tasks:
        assert f"| `{task.name}` | {task.instruction} | " in card
    words = " ".join(card.split())
    assert f"at most {suite.horizon} control steps" in words
    assert f"draws from the first {len(suite.train_ids):,}" in words
    assert f"{len(suite.test_ids)} after them" in words


def test_a_missing_package_is_named_with_its_install_line(without_package: None):
    suite = find_suite("metaworld_mt10")
    message = r"need the package metaworld: pip install --editable '.\[metaworld\]'"
    with pytest.raises(ConfigError, match=message):
        simulate(suite, 1)
    with pytest.raises(ConfigError, match=message):
        models.env_class(suite.tasks[0].name)


def test_variations_are_refused():
    with pytest.raises(ConfigError, match="'metaworld_mt10': the backend 'metaworld' has no varia"):
        simulate(find_suite("metaworld_mt10"), 1, variation=VariationConfig(mass_gain=(1.0, 2.0)))


def test_it_is_no_suite_of_our_own_simulation():
    with pytest.raises(ConfigError, match="has the backend 'metaworld' and no scene of its own"):
        load_suite("metaworld_mt10")


def test_an_unknown_backend_names_the_nearest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "read_toml", lambda file: {"backend": "metawrld"})
    with pytest.raises(ConfigError, match="unknown backend 'metawrld'. Did you mean 'metaworld'"):
        find_suite("metaworld_mt10")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("horizon = 200", "horizon = 501", "horizon = 501, expected at least 1 and at most 500"),
        ("num_test_states = 200", "num_test_states = 0", "num_test_states = 0, expected at least"),
        ('"push-v3"', '"reach-v3"', "tasks: expected at least one task, and each name once"),
        ('things = ["goal"]', "things = []", r"tasks\[0\]: things has 0 entries, expected at"),
        ('things = ["goal"]', 'thing = "goal"', "thing"),
    ],
)
def test_a_wrong_suite_file_is_refused(read_changed, old: str, new: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_changed(old, new)


@needs_metaworld
def test_an_unknown_task_names_the_nearest(read_changed):
    suite = read_changed('"push-v3"', '"posh-v3"')
    with pytest.raises(ConfigError, match="unknown task 'posh-v3'. Did you mean 'push-v3'"):
        models.env_class(suite.tasks[1].name)
