"""The command line; what its commands call is replaced by fakes that record their arguments."""

import ctypes
import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import mujoco
import pytest
import torch

from vla_crl import catalog
from vla_crl.bench.record import against_peer
from vla_crl.cli import main as cli
from vla_crl.cli import measuring
from vla_crl.cli.doctor import Check, Status
from vla_crl.compute import ComputeConfig
from vla_crl.continual.loggers.loggers import Loggers
from vla_crl.contracts import ARM, Embodiment
from vla_crl.errors import CheckpointError, ConfigError, StoppedEvaluationError
from vla_crl.hardware import hardware_name
from vla_crl.rollout.results import PlayedEpisode, TaskResult
from vla_crl.runs.directory import RunDirectory

COMMANDS = (
    *("list", "show", "collect", "pretrain", "train", "evaluate"),
    *("export", "metrics", "rollout", "report", "verify", "bench", "doctor"),
)


KITCHEN = types.SimpleNamespace(
    backend="native",
    trials=100,
    conditions={},
    pictures="",
    test_ids=range(200, 400),
    train_ids=range(200),
    name="kitchen",
    description="Two pots.",
    tasks=(
        types.SimpleNamespace(name="lift", instruction="lift the pot", split="train", horizon=48),
        types.SimpleNamespace(name="push", instruction="push the pot", split="heldout", horizon=48),
    ),
    embodiment=ARM,
    task_index=["lift", "push"].index,
)


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    suite: str
    policy: str = "tiny"
    method: str = "sequential"
    seed: int = 0
    video_episodes: int = 2
    rounds: int = 1
    learner: LearnerConfig = LearnerConfig()
    compute: ComputeConfig = field(default_factory=ComputeConfig)


def make_result(task: str = "lift", *, successes: int = 0, episodes: int = 4) -> TaskResult:
    states = range(200, 200 + episodes)
    played = (PlayedEpisode(state, state < 200 + successes, 9) for state in states)
    return TaskResult(task, "train", tuple(played))


class Trainer:
    """Remembers how it was made and whether it was to resume."""

    made: ClassVar[list["Trainer"]] = []

    policy, suite, weights = "trained", KITCHEN, "0a1b"
    stream = types.SimpleNamespace(train_tasks=("lift",))
    loggers = Loggers((), RunDirectory(Path("nowhere")), {})

    def __init__(self, config: TrainConfig, run: RunDirectory) -> None:
        if config.policy == "unfit":
            raise ConfigError("the recipe does not fit")
        self.config, self.run = config, run
        self.resume: bool | None = None
        self.made.append(self)

    def train(self, *, resume: bool) -> None:
        assert RunDirectory.open(self.run.path)
        header = "stage,task,split,successes,episodes"
        self.run.matrix_file.write_text(f"{header}\n0,lift,train,20,100\n1,lift,train,60,100\n")
        self.resume = resume

    def load_base(self) -> "Policy":
        return Policy(catalog.policy_path(self.config.policy))

    def close(self) -> None:
        """Nothing is open."""


class Calls(list[tuple[tuple[Any, ...], dict[str, Any]]]):
    """A function that remembers how it was called."""

    def __init__(self, result: Any = None) -> None:
        super().__init__()
        self.result = result

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        sys.stdout.write("a print of a library\n")
        self.append((arguments, keywords))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


Install = Callable[..., None]


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("vla_crl")
    handlers, level = root.handlers[:], ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


@dataclass(frozen=True)
class Policy:
    """A loaded policy: where it came from, and what it was built for."""

    path: Path
    embodiment: Embodiment = ARM
    device: str = "cpu"
    base: str | None = None
    config: ClassVar[Any] = types.SimpleNamespace(pictures="")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def add(name: str, **attributes: Any) -> None:
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    return add


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install) -> Path:
    """A catalogue with one suite of two tasks, one preset and one recipe, as working directory."""
    for folder in ("envs/kitchen", "policies", "experiments"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "envs/kitchen/suite.toml").write_text('description = "Two pots."\n')
    (tmp_path / "policies/tiny.toml").write_text("num_layers = 2\n")
    (tmp_path / "experiments/demo.toml").write_text('suite = "kitchen"\n')
    monkeypatch.setattr(catalog, "catalog_dir", lambda kind: tmp_path / kind)
    monkeypatch.chdir(tmp_path)
    install("vla_crl.sim.backends", find_suite=lambda name: KITCHEN)
    install("vla_crl.models.checkpoint", load_policy=load_policy)
    install("vla_crl.rollout.agents", PolicyAgent=PolicyAgent, ExpertAgent=ExpertAgent)
    install("vla_crl.rollout.lanes", simulate_lanes=simulate_lanes, close_lanes=Calls())
    return tmp_path


class PolicyAgent(NamedTuple):
    """Tells what it was made of."""

    policy: Any
    deterministic: bool
    image_size: int = 32

    def description(self, suite: Any) -> dict[str, Any]:
        return {"weights": "0a1b"}


class ExpertAgent(NamedTuple):
    """Is equal to any other."""

    image_size: int = 64

    def description(self, suite: Any) -> dict[str, Any]:
        return {}


def load_policy(name: str, *, base: str | None, device: str, dtype: str) -> Policy:
    return Policy(catalog.policy_path(name), device=device, base=base)


def simulate_lanes(suite: Any, num_envs: int, **settings: Any) -> tuple[Any, ...]:
    return suite, num_envs, settings


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    assert exit_info.value.code == 0
    assert f"usage: vla-crl {command}" in capsys.readouterr().out


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command} " in text for command in COMMANDS)


def test_list_and_show_print_one_json_document(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def document(*arguments: str) -> Any:
        code, out, _ = run(capsys, *arguments, "--json")
        assert code == 0
        return json.loads(out)

    rows = [{"task": "lift", "successes": 3, "episodes": 4}]
    (world / "envs/kitchen/expert.json").write_text(json.dumps(rows))
    lift, push = (
        {"suite": "kitchen", "name": name, "instruction": f"{name} the pot"}
        | {"split": split, "expert_success": success}
        for name, split, success in (("lift", "train", 0.75), ("push", "heldout", None))
    )
    assert document("list", "suites") == [{"name": "kitchen", "description": "Two pots."}]
    assert document("list", "policies") == [{"name": "tiny", "description": ""}]
    assert document("list", "recipes") == [{"name": "demo", "description": ""}]
    assert document("list", "tasks") == [lift, push]
    assert document("list", "tasks", "--suite", "kitchen") == [lift, push]
    assert document("show", "suite", "kitchen") == {
        "name": "kitchen",
        "description": "Two pots.",
        "folder": str(world / "envs/kitchen"),
        "tasks": [lift, push],
    }
    assert document("show", "policy", "tiny") == {"num_layers": 2}
    recipe = world / "experiments/demo.toml"
    assert document("show", "recipe", "demo") == {
        "settings": {"suite": "kitchen"},
        "origins": {"suite": str(recipe)},
        "left_out": {},
    }
    (world / "experiments/long.toml").write_text('extends = "demo"\nseed = 3\n')
    _, out, _ = run(capsys, "show", "recipe", "long")
    long = world / "experiments/long.toml"
    expected = f'# {long}\n# {recipe}\nsuite = "kitchen"  # demo.toml\nseed = 3  # long.toml\n'
    assert out == expected


def test_a_file_that_is_no_recipe_is_not_shown(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "model.safetensors").write_bytes(b"\xff\x00")
    code, _, err = run(capsys, "show", "recipe", str(world / "model.safetensors"))
    assert code == 2
    assert "model.safetensors: not a text file" in err


def test_a_broken_suite_does_not_hide_the_others(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "envs/attic").mkdir()
    (world / "envs/attic/suite.toml").write_bytes(b"\xff")
    code, out, _ = run(capsys, "list", "suites", "--json")
    attic, kitchen = json.loads(out)
    assert code == 0
    assert "cannot be read: " in attic["description"]
    assert "suite.toml: not a text file" in attic["description"]
    assert kitchen == {"name": "kitchen", "description": "Two pots."}


def test_the_tasks_of_a_broken_suite_do_not_hide_those_of_others(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_suite(name: str) -> Any:
        if name == "attic":
            raise ConfigError("attic: no floor")
        return types.SimpleNamespace(description="", tasks=[task])

    (world / "envs/attic").mkdir()
    (world / "envs/attic/suite.toml").touch()
    task = types.SimpleNamespace(name="lift", instruction="lift it", split="train")
    install("vla_crl.sim.backends", find_suite=find_suite)
    code, out, error = run(capsys, "list", "tasks", "--json")
    assert (code, [row["name"] for row in json.loads(out)]) == (0, ["lift"])
    assert "suite 'attic' is left out: attic: no floor" in error
    assert run(capsys, "list", "tasks", "--suite", "attic")[0] == 2


def test_methods_are_listed_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = run(capsys, "list", "methods", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    row = rows["sequential"]
    assert row["file"].endswith("methods/sequential.py")
    assert row["description"].startswith("Train on one task after another")
    assert (row["stores"], row["needs_task_id"]) == ("nothing", False)
    assert rows["multitask"]["paper"].startswith("arXiv 2603.11653")


def test_learners_are_listed_by_name_with_those_of_ones_own(
    capsys: pytest.CaptureFixture[str], own_folder: Path
) -> None:
    code = 'from vla_crl.algos.ppo import PPO\nclass Mine(PPO):\n    """Slower."""\n'
    (own_folder / "my_learners.py").write_text(code)
    (own_folder / "broken.py").write_text("class A(:\n")
    _, out, _ = run(capsys, "list", "learners", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    ours = ["ppo", "grpo", "gspo", "reinforce", "sft", "cloning", "distillation"]
    assert [*rows] == [*ours, "my_learners:Mine", "broken"]
    assert rows["grpo"]["description"].startswith("Clipped updates on returns relative to epis")
    assert rows["my_learners:Mine"]["description"] == "Slower."
    assert rows["broken"]["description"].startswith("cannot be read: ")


def test_heads_are_listed_by_name_with_those_of_ones_own(
    capsys: pytest.CaptureFixture[str], own_folder: Path
) -> None:
    code = (
        'from vla_crl.models.heads.flow import FlowHead\nclass Mine(FlowHead):\n    """Bolder."""\n'
    )
    (own_folder / "my_heads.py").write_text(code)
    _, out, _ = run(capsys, "list", "heads", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert [*rows] == ["flow", "noise", "gaussian", "parallel", "tokens", "my_heads:Mine"]
    assert rows["flow"]["description"].startswith("An action expert that predicts the clean chunk")
    assert rows["my_heads:Mine"]["description"] == "Bolder."


def test_without_json_a_table_is_printed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "suite", "kitchen")
    assert "description: Two pots." in out
    assert "push the pot" in out
    _, out, _ = run(capsys, "list", "tasks")
    assert out.startswith("kitchen")
    assert "push the pot" in out
    _, out, _ = run(capsys, "show", "policy", "tiny")
    assert out == "num_layers = 2\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("show suite kitchn", "unknown suite 'kitchn'. Did you mean 'kitchen'?"),
        ("list tasks --suite kitchn", "unknown suite 'kitchn'. Did you mean 'kitchen'?"),
        ("show policy tyni", "unknown policy 'tyni'. Did you mean 'tiny'?"),
        ("show policy envs/", "expected the name or the file of a policy"),
        ("show recipe demoo", "unknown recipe 'demoo'. Did you mean 'demo'?"),
        ("train demoo", "unknown recipe 'demoo'. Did you mean 'demo'?"),
        ("pretrain demoo", "unknown recipe 'demoo'. Did you mean 'demo'?"),
        ("collect --suite kitchn --episodes 1 --output a", "Did you mean 'kitchen'?"),
        ("bench sim --suite kitchn", "Did you mean 'kitchen'?"),
        (
            "bench update --suite kitchen --peers",
            "bench update: has no --peers; libero, metaworld, ",
        ),
        ("bench metaworld", "bench metaworld: is measured beside peers only, add --peers"),
        (
            "bench sim --suite kitchen --sizes 4",
            "has no --sizes; libero, render, scale and warp have",
        ),
        ("bench sim --suite kitchen --device cpu", "bench sim: has no --device; warp has"),
        ("bench sim --suite kitchen --policy tiny", "bench sim: has no --policy; update has"),
        ("bench warp --suite kitchen", "bench warp: needs --device, e.g. --device cuda:0"),
        ("bench scale --suite kitchen --sizes 0", "'0' is not a whole number, 1 to 999999999"),
        ("evaluate --policy tiny --suite kitchn", "Did you mean 'kitchen'?"),
        ("rollout --policy tyni --suite kitchen", "Did you mean 'tiny'?"),
        ("evaluate --policy tyni --suite kitchen", "Did you mean 'tiny'?"),
        ("evaluate --policy exprt --suite kitchen", "Did you mean 'expert'?"),
        ("evaluate --policy a/b --suite kitchen", "a/b: no such policy, looked for at /"),
        ("rollout --policy tiny --suite kitchn", "Did you mean 'kitchen'?"),
        ("evaluate --policy tiny --suite kitchen --episods 3", "Did you mean --episodes?"),
        ("doctor --verbose", "unknown argument '--verbose'. See vla-crl doctor --help."),
        ("report runs/none", "runs/none: not a run directory"),
        ("train demo --resume", "runs/demo: not a run directory"),
        ("evaluate --policy tiny --suite kitchen --device gpu", "device is 'gpu', expected 'cpu'"),
    ],
)
def test_a_mistake_is_one_line_with_code_2(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    install("vla_crl.continual.recipe", TrainConfig=TrainConfig)
    install("vla_crl.continual.trainer", Trainer=Trainer)
    install("vla_crl.report.film", record_rollouts=Calls(), film_run=Calls())
    install("vla_crl.rollout.evaluate", evaluate=Calls())
    code, out, err = run(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("vla-crl: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (world / "runs/demo").exists()


@pytest.mark.parametrize("episodes", ["0", "-1", "two", "1.5"])
def test_a_number_of_episodes_is_above_zero(
    episodes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "evaluate", "--policy", "p", "--suite", "s", "--episodes", episodes)
    assert code == 2
    assert "--episodes" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lst",), "'lst' (choose from"),
        (("lst",), "Did you mean 'list'?"),
        (("list", "suits"), "Did you mean 'suites'?"),
        (("show", "polcy", "tiny"), "Did you mean 'policy'?"),
        (("list", "suites", "--suite", "x"), "list suites: --suite is for tasks only"),
        (("show", "policy", "tiny", "--output", "x.png"), "show policy: --output is for suites"),
        (("evaluate",), "the following arguments are required: --policy, --suite; see vla-crl ev"),
        (
            ("collect", "--suite", "s", "--episodes", "1", "--output", "o", "--seed", "-1"),
            "'-1' is not a whole number, 0 to 4294967295",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("vla-crl: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_evaluate_prints_rows_and_keeps_stdout_clean(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls([make_result()])
    install("vla_crl.rollout.evaluate", evaluate=calls)
    flags = ("--episodes", "4", "--tasks", "lift", "--json", "--output", "rows.json")
    code, out, err = run(capsys, "evaluate", "--policy", "tiny", "--suite", "kitchen", *flags)
    assert code == 0
    assert json.loads(out) == json.loads((world / "rows.json").read_text())
    (row,) = json.loads(out)
    measured = row.pop("fingerprint")
    # Wilson's interval of 0 successes in n is [0, z^2 / (n + z^2)], z = 1.959964.
    assert [row] == [
        {
            "task": "lift",
            "split": "train",
            "successes": 0,
            "episodes": 4,
            "low": pytest.approx(0.0, abs=1e-9),
            "high": pytest.approx(3.841459 / 7.841459),
        }
    ]
    assert (measured["suite"], measured["state_ids"], measured["horizon"]) == (
        *("kitchen", "200-203", 48),
    )
    assert (measured["policy"], measured["weights"], measured["num_envs"]) == ("tiny", "0a1b", 4)
    assert measured["hardware"] == hardware_name()
    assert measured["packages"]["mujoco"] == mujoco.__version__
    assert "a print of a library" in err
    assert "success: 0 of 4 episodes, 0.0 %" in err
    agent = PolicyAgent(Policy(world / "policies/tiny.toml"), deterministic=True)
    sims = KITCHEN, 4, {"image_size": 32, "compute": ComputeConfig(), "tasks": [0]}
    assert calls == [((agent, sims, ["lift"]), {"num_episodes": 4, "states": "test"})]
    assert (world / "rows.episodes.csv").read_text().splitlines() == [
        "stage,task,state_id,success,num_steps,seed",
        *(f",lift,{state},0,9,0" for state in range(200, 204)),
    ]


def test_episodes_of_an_evaluation_are_not_overwritten(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.rollout.evaluate", evaluate=Calls([make_result()]))
    (world / "rows.episodes.csv").write_text("precious")
    flags = ("--suite", "kitchen", "--output", "rows.json")
    code, _, err = run(capsys, "evaluate", "--policy", "tiny", *flags)
    assert code == 2
    assert "rows.episodes.csv: exists; nothing was overwritten" in err


@pytest.mark.parametrize("command", ["evaluate", "rollout"])
def test_a_command_that_runs_a_policy_is_told_where_and_with_how_many_threads(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    evaluated, filmed = Calls([make_result()]), Calls()
    install("vla_crl.rollout.evaluate", evaluate=evaluated)
    install("vla_crl.report.film", record_rollouts=filmed, record_failures=Calls())
    before = torch.get_num_threads()
    try:
        flags = ["--num-torch-threads", "3", "--num-sim-threads", "5", "--dtype", "bfloat16"]
        code, _, _ = run(capsys, command, "--policy", "tiny", "--suite", "kitchen", *flags)
        assert (code, torch.get_num_threads()) == (0, 3)
    finally:
        torch.set_num_threads(before)
    compute = ComputeConfig(num_torch_threads=3, num_sim_threads=5, dtype="bfloat16")
    if command == "evaluate":
        ((_, (_, num_envs, settings), _), _) = evaluated[0]
        assert (num_envs, settings["compute"]) == (128, compute)
    else:
        assert filmed[0][1]["compute"] == compute


def test_the_help_of_sampled_actions_is_true_of_every_head(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--sampled sample actions as in training (default: deterministic actions)" in told


@pytest.mark.parametrize("command", ["evaluate", "rollout"])
def test_the_help_shows_where_a_command_computes_by_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--device DEVICE where the policy runs: cpu, cuda or cuda:1 (default: cpu)" in words
    assert "MuJoCo Warp (default: cpu)" in words
    assert "numbers of the policy's backbone (default: float32)" in words
    assert "matrix products, on the CPU (default: 2)" in words
    assert "physics and rendering, on the CPU (default: 2)" in words


def test_what_c_code_prints_stays_out_of_the_json_document(
    world: Path, install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    libc = ctypes.CDLL(None)

    def warn(*_: Any, **__: Any) -> list[TaskResult]:
        libc.printf(b"WARNING: unstable\n")  # to C's own buffer
        return [make_result()]

    install("vla_crl.rollout.evaluate", evaluate=warn)
    code, out, err = run(capfd, "evaluate", "--policy", "tiny", "--suite", "kitchen", "--json")
    assert code == 0
    assert json.loads(out)[0]["task"] == "lift"
    assert "WARNING: unstable" in err


def test_a_policy_of_another_robot_is_refused(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Policy(world, Embodiment(action=("x",), state=("x",), cameras=("top",)))
    install("vla_crl.models.checkpoint", load_policy=lambda name, **settings: other)
    install("vla_crl.rollout.evaluate", evaluate=Calls())
    install("vla_crl.report.film", record_rollouts=Calls(), record_failures=Calls())
    for command in ("evaluate", "rollout"):
        flags = ["--output", "a.mp4"] if command == "rollout" else []
        code, _, err = run(capsys, command, "--policy", "tiny", "--suite", "kitchen", *flags)
        assert code == 2
        assert "policy 'tiny' on suite 'kitchen': action[0] of the suite is 'delta_x'" in err


def test_what_an_evaluation_had_finished_is_written_where_it_stops(world, install, capsys):
    results = [make_result(successes=1), make_result("push", episodes=0)]
    stopped = StoppedEvaluationError("worker 0 died", results)
    install("vla_crl.rollout.evaluate", evaluate=Calls(stopped))
    command = ["evaluate", "--policy", "tiny", "--suite", "kitchen"]
    output = world / "rows.json"
    assert cli.main([*command, "--output", str(output)]) == 2
    partial = world / "rows.partial.json"
    assert f"worker 0 died. Episodes that had ended are in {partial}" in capsys.readouterr().err
    (row,) = json.loads(partial.read_text())
    assert (row["task"], row["successes"], row["episodes"]) == ("lift", 1, 4)
    lines = (world / "rows.partial.episodes.csv").read_text().splitlines()
    assert lines[1:] == [",lift,200,1,9,0", *(f",lift,{state},0,9,0" for state in (201, 202, 203))]
    assert not output.exists()
    assert cli.main(command) == 2
    assert "worker 0 died" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--episodes", "201"), "201 episodes a task, but suite 'kitchen' has test states for 1 t"),
        (("--tasks", "lift", "lift"), "evaluate: a task is named twice: lift, lift"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_told_or_loaded(
    world, install, capsys, monkeypatch, flags, message
):
    calls = Calls([make_result()])
    install("vla_crl.rollout.evaluate", evaluate=calls)
    monkeypatch.setattr(KITCHEN, "conditions", {"physics": "exact"})
    code, out, err = run(capsys, "evaluate", "--policy", "tiny", "--suite", "kitchen", *flags)
    assert (code, out, calls) == (2, "", [])
    assert message in err
    assert err.count("\n") == 1


def test_evaluate_takes_all_tasks_when_none_is_named(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls([make_result()])
    install("vla_crl.rollout.evaluate", evaluate=calls)
    run(capsys, "evaluate", "--policy", "tiny", "--suite", "kitchen", "--sampled")
    ((arguments, _),) = calls
    agent = PolicyAgent(Policy(world / "policies/tiny.toml"), deterministic=False)
    assert (arguments[0], arguments[2]) == (agent, None)


@pytest.mark.parametrize(
    ("command", "module", "name"),
    [("evaluate", "rollout.evaluate", "evaluate"), ("rollout", "report.film", "record_rollouts")],
)
def test_the_expert_may_act_in_place_of_a_policy(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    command: str,
    module: str,
    name: str,
) -> None:
    calls = Calls([make_result()])
    install(f"vla_crl.{module}", **{"record_failures": Calls(), name: calls})
    flags = ["--states", "train"] if command == "evaluate" else ["--output", "a.mp4"]
    run(capsys, command, "--policy", "expert", "--suite", "kitchen", *flags)
    ((arguments, keywords),) = calls
    assert (arguments[0], arguments[2]) == (ExpertAgent(), None)
    assert keywords.get("states", "train") == "train"


@pytest.mark.parametrize(
    ("arguments", "suffix"),
    [
        ("show suite kitchen --output a.xyz", ".png"),
        ("rollout --policy tiny --suite kitchen --output a.gif", ".mp4"),
        ("collect --suite kitchen --episodes 1 --output a", ".npz"),
    ],
)
def test_a_file_of_another_kind_is_refused_before_the_work(
    world: Path, capsys: pytest.CaptureFixture[str], arguments: str, suffix: str
) -> None:
    code, _, err = run(capsys, *arguments.split())
    assert code == 2
    assert f"expected a name that ends in {suffix}" in err


@pytest.mark.parametrize(
    "arguments",
    [
        "evaluate --policy tiny --suite kitchen --output mine",
        "rollout --policy tiny --suite kitchen --output mine",
        "collect --suite kitchen --episodes 1 --output mine",
        "pretrain demo --output mine",
    ],
)
def test_an_existing_file_is_not_overwritten(
    world: Path, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    (world / "mine").write_text("precious")
    code, _, err = run(capsys, *arguments.split())
    assert code == 2
    assert "mine: exists; nothing was overwritten. Choose another --output." in err
    assert (world / "mine").read_text() == "precious"


def test_an_output_below_a_file_is_an_error(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "mine").write_text("precious")
    flags = ("--policy", "tiny", "--suite", "kitchen", "--output", "mine/a.mp4")
    code, _, err = run(capsys, "rollout", *flags)
    assert code == 2
    assert "--output mine/a.mp4: cannot write to mine" in err


@pytest.mark.parametrize(
    ("flags", "called", "expected"),
    [
        (["--states", "7", "200"], "record_rollouts", {"episodes": [7, 200]}),
        (["--only", "failures"], "record_failures", {"num_episodes": 4, "num_envs": 128}),
        (["--only", "failures", "--episodes", "2"], "record_failures", {"num_episodes": 2}),
    ],
)
def test_rollout_films_the_states_that_are_named_or_what_fails(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    called: str,
    expected: dict[str, Any],
) -> None:
    calls = {"record_rollouts": Calls([True]), "record_failures": Calls([])}
    install("vla_crl.report.film", **calls)
    command = ("rollout", "--policy", "tiny", "--suite", "kitchen", "--output", "a.mp4")
    code, out, _ = run(capsys, *command, *flags)
    assert code == 0
    assert ("a.mp4\n" in out) == (called == "record_rollouts")  # nothing failed: no file
    ((_, keywords),) = calls.pop(called)
    assert expected.items() <= keywords.items()
    assert [*calls.values()] == [[]]


@pytest.mark.parametrize("flags", [["--only", "failures"], ["--episodes", "3"]])
def test_named_states_leave_nothing_to_choose(
    world: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    code, _, err = run(
        capsys, "rollout", "--policy", "tiny", "--suite", "kitchen", "--states", "7", *flags
    )
    assert code == 2
    assert f"--states names the episodes already; leave out {flags[0]}" in err


def test_rollout_passes_policy_suite_tasks_and_output(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls()
    install("vla_crl.report.film", record_rollouts=calls, record_failures=Calls())
    flags = ("--policy", "tiny", "--suite", "kitchen", "--output", "videos/a.mp4")
    code, _, _ = run(capsys, "rollout", *flags)
    assert code == 0
    ((arguments, keywords),) = calls
    agent = PolicyAgent(Policy(world / "policies/tiny.toml"), deterministic=True)
    assert arguments == (agent, KITCHEN, None)
    output = {"output": Path("videos/a.mp4"), "renderer": "own"}
    assert keywords == {"episodes": 4, "compute": ComputeConfig()} | output
    assert (world / "videos").is_dir()


@pytest.mark.parametrize(
    ("command", "module", "function"),
    [("evaluate", "rollout.evaluate", "evaluate"), ("rollout", "report.film", "record_rollouts")],
)
def test_who_moved_a_base_policy_says_where_it_is(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    command: str,
    module: str,
    function: str,
) -> None:
    calls = Calls([make_result()])
    install(f"vla_crl.{module}", **{"record_failures": Calls(), function: calls})
    flags = ("--suite", "kitchen", "--base", "moved/base")
    code, _, _ = run(capsys, command, "--policy", "tiny", *flags)
    assert code == 0
    assert calls[0][0][0].policy.base == "moved/base"
    code, _, err = run(capsys, command, "--policy", "expert", *flags)
    assert code == 2
    assert "--base moved/base: the expert has no base policy; leave it out" in err


def test_collect_saves_the_demonstrations(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    save, collect = Calls(), Calls("demonstrations")
    install("vla_crl.rollout.demonstrations", collect_demonstrations=collect)
    install("vla_crl.datasets.npz", save_demonstrations=save)
    flags = ("--suite", "kitchen", "--episodes", "3", "--output", "demos.npz", "--seed", "5")
    code, _, _ = run(capsys, "collect", *flags, "--image-size", "32")
    settings = {"seed": 5, "image_size": 32, "num_threads": 2}
    assert (code, collect) == (0, [((KITCHEN, 3), settings)])
    assert save == [(("demonstrations", KITCHEN, Path("demos.npz")), {})]


def test_pretrain_applies_flags_to_the_recipe(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls()
    install("vla_crl.pretraining.recipe", PretrainConfig=TrainConfig)
    install("vla_crl.pretraining.pretrain", pretrain=calls)
    code, _, _ = run(capsys, "pretrain", "demo", "--seed", "3", "--learner.learning-rate", "1e-4")
    config = TrainConfig(suite="kitchen", seed=3, learner=LearnerConfig(learning_rate=1e-4))
    assert (code, calls) == (
        0,
        [((config, Path("runs/demo")), {"recipe": "demo --seed 3 --learner.learning-rate 1e-4"})],
    )


def test_train_makes_a_run_and_its_report(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "made", [])
    write_report = Calls(Path("runs/demo/report.html"))
    film_run = Calls()
    install("vla_crl.report.film", film_run=film_run)
    install("vla_crl.continual.recipe", TrainConfig=TrainConfig)
    install("vla_crl.continual.trainer", Trainer=Trainer)
    install("vla_crl.report.page", write_report=write_report)
    arguments = ("train", "demo", "--seed", "3", "--learner.learning-rate", "1e-4")
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert "runs/demo/report.html" in out
    assert "Success on the test states" in err
    assert "+40.0" in err
    config = TrainConfig(suite="kitchen", seed=3, learner=LearnerConfig(learning_rate=1e-4))
    directory = RunDirectory.open(Path("runs/demo"))
    (trainer,) = Trainer.made
    assert (trainer.config, trainer.run, trainer.resume) == (config, directory, False)
    assert write_report == [((Path("runs/demo"),), {})]
    policies = {
        "before training": PolicyAgent(Policy(catalog.policy_path("tiny")), deterministic=True),
        "after training": PolicyAgent("trained", deterministic=True),
    }
    keywords = {"num_episodes": 2, "folder": Path("runs/demo/videos"), "compute": ComputeConfig()}
    assert film_run == [((policies, KITCHEN, ("lift",)), keywords)]
    assert directory.read_config()["learner"] == {"learning_rate": 1e-4}
    assert directory.read_versions()["command"] == ["vla-crl", *arguments]
    assert directory.read_versions()["seed"] == 3

    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "runs/demo: exists and is not empty; nothing was overwritten" in err
    code, _, err = run(capsys, "train", "demo", "--resume")
    assert code == 2
    assert "learner.learning_rate is 0.0001 there but 0.001 now" in err
    assert [trainer.resume for trainer in Trainer.made] == [False, None, None]
    code, _, _ = run(capsys, *arguments, "--resume")
    assert (code, Trainer.made[-1].resume) == (0, True)

    monkeypatch.setattr(Trainer, "weights", "ffff")
    code, _, err = run(capsys, *arguments, "--resume")
    assert code == 2
    assert "the run began with a policy of the weights 0a1b, but 'tiny' has ffff; restore" in err

    Path("runs/begun/plots").mkdir(parents=True)  # by a process that was killed then
    code, _, err = run(capsys, *arguments, "--resume", "--run-dir", "runs/begun")
    assert "runs/begun: nothing there to go on with, so the run begins\n" in err
    assert (code, Trainer.made[-1].resume) == (0, False)


def test_a_recipe_that_does_not_fit_leaves_no_run(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.continual.recipe", TrainConfig=TrainConfig)
    install("vla_crl.continual.trainer", Trainer=Trainer)
    install("vla_crl.report.film", film_run=Calls())
    install("vla_crl.report.page", write_report=Calls())
    code, _, err = run(capsys, "train", "demo", "--policy", "unfit")
    assert (code, err) == (2, "vla-crl: error: the recipe does not fit\n")
    assert not (world / "runs").exists()


@pytest.mark.parametrize(
    ("command", "recipe", "owner"),
    [("train", "pretrain_tiny", "pretrain"), ("pretrain", "demo", "train")],
)
def test_a_recipe_of_another_command_is_named_as_such(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, recipe: str, owner: str
) -> None:
    flag = {"train": "--run-dir", "pretrain": "--output"}[command]
    assert cli.main([command, recipe, flag, str(tmp_path / "new")]) == 2
    message = f"{recipe}.toml: is a recipe of 'vla-crl {owner}', not of 'vla-crl {command}'"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_wrong_setting_makes_no_run(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.continual.recipe", TrainConfig=TrainConfig)
    install("vla_crl.continual.trainer", Trainer=Trainer)
    code, out, err = run(capsys, "train", "demo", "--learner.learning-rat", "1")
    assert (code, out) == (2, "")
    assert err == (
        "vla-crl: error: vla-crl train demo: Unrecognized options: --learner.learning-rat, 1. Did "
        "you mean --learner.learning-rate? (see vla-crl train demo --help)\n"
    )
    assert not (world / "runs").exists()


def test_help_after_a_recipe_lists_its_settings(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.continual.recipe", TrainConfig=TrainConfig)
    install("vla_crl.continual.trainer", Trainer=Trainer)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train", "demo", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "--run-dir" in text
    assert "--learner.learning-rate" in text


def test_metrics_gives_one_row_a_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "matrix.csv"
    file.write_text("stage,task,split,successes,episodes\n0,a,train,20,100\n1,a,train,60,100\n")
    _, out, _ = run(capsys, "metrics", str(file), "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["avg"]["value"] == 0.6
    # Wilson's interval of 60 in 100: (.6 + z^2/200 +- z sqrt(.24/100 + (z/200)^2)) / (1 + z^2/100)
    assert (rows["avg"]["low"], rows["avg"]["high"]) == pytest.approx((0.5020, 0.6906), abs=5e-5)
    assert rows["zs"] == {"name": "zs", "value": None, "low": None, "high": None}
    _, out, _ = run(capsys, "metrics", str(file))
    assert "60.0 %" in out
    assert "+40.0" in out


def test_metrics_of_a_stream_of_two_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "matrix.csv"
    header = "stage,task,split,successes,episodes\n"
    file.write_text(header + "0,a,train,2,10\n1,a,train,6,10\n2,a,train,8,10\n")
    code, _, err = run(capsys, "metrics", str(file))
    assert code == 2
    assert "matrix.csv:4: stage 2, but there are only 1" in err
    assert "--rounds" in err
    code, out, _ = run(capsys, "metrics", str(file), "--rounds", "2", "--json")
    assert code == 0
    assert {row["name"]: row["value"] for row in json.loads(out)}["avg"] == 0.8
    code, _, err = run(capsys, "metrics", str(file), "--rounds", "0")
    assert code == 2
    assert "argument --rounds: '0' is not a whole number, 1 to 999999999" in err


@pytest.mark.parametrize(
    ("what", "keywords"),
    [
        ("render", {"suite": "kitchen"}),
        ("scale", {"suite": "kitchen"}),
        ("sim", {"suite": "kitchen"}),
        ("update", {}),
    ],
)
def test_bench_prints_its_records(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    what: str,
    keywords: dict[str, str],
) -> None:
    calls = Calls([against_peer("speed", 6.0, "steps/s", "mj_step", 8.0, goal=0.6)])
    install(f"vla_crl.bench.{what}", **{f"bench_{what}": calls})
    _, out, _ = run(capsys, "bench", what, "--suite", "kitchen", "--json")
    (document,) = json.loads(out)
    assert (document["name"], document["ratio"], document["goal"]) == ("speed", 0.75, 0.6)
    assert calls == [((), keywords)]
    _, out, _ = run(capsys, "bench", what, "--suite", "kitchen")
    assert "speed" in out


@pytest.mark.parametrize(
    ("what", "flags", "keywords"),
    [
        ("sim", "--suite kitchen --peers", {"suite": "kitchen"}),
        ("libero", "--peers", {}),
        ("metaworld", "--peers threads", {"peers": ["threads"]}),
        ("render", "--peers egl --sizes 64 224", {"peers": ["egl"], "sizes": [64, 224]}),
    ],
)
def test_bench_with_peers_passes_their_names(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    what: str,
    flags: str,
    keywords: dict[str, Any],
) -> None:
    calls = Calls([against_peer("speed", 6.0, "steps/s", "mj_step", 8.0)])
    install(f"vla_crl.bench.{what}_peers", **{f"bench_{what}_peers": calls})
    code, _, _ = run(capsys, "bench", what, *flags.split(), "--json")
    assert (code, calls) == (0, [((), keywords)])


def test_bench_passes_sizes(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls([against_peer("speed", 6.0, "us/step", "64", 8.0)])
    install("vla_crl.bench.scale", bench_scale=calls)
    run(capsys, "bench", "scale", "--suite", "kitchen", "--sizes", "64", "256")
    assert calls == [((), {"suite": "kitchen", "sizes": [64, 256]})]


def test_bench_passes_the_device(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls([against_peer("speed", 6.0, "steps/s", "VectorSim, 2 threads", 8.0)])
    install("vla_crl.bench.warp", bench_warp=calls)
    run(capsys, *["bench", "warp", "--device", "cuda:0", "--sizes", "1024"])
    assert calls == [((), {"sizes": [1024], "device": "cuda:0"})]


@dataclass(frozen=True)
class Compared:
    """What a verification found in one task."""

    task: str
    agrees: bool


@pytest.mark.parametrize("agrees", [True, False])
def test_verify_ends_with_1_when_a_task_differs(world, install, capsys, agrees):
    rows = [Compared("lift", True), Compared("push", agrees)]
    verify = Calls(rows)
    install("vla_crl.sim.libero.verify", verify=verify, table=lambda rows: f"{len(rows)} rows\n")
    output = world / "table.md"
    command = ["verify", "libero", "--tasks", "2", "--seed", "3", "--markdown", str(output)]
    assert cli.main([*command, "--json"]) == (0 if agrees else 1)
    assert json.loads(capsys.readouterr().out) == [dataclasses.asdict(row) for row in rows]
    assert verify == [((2, 3), {})]
    assert output.read_text() == "2 rows\n"
    assert cli.main(command) == 2
    assert "exists; nothing was overwritten. Choose another --markdown" in capsys.readouterr().err
    assert len(verify) == 1


def test_doctor_ends_with_1_when_something_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected_codes: dict[Status, int] = {"ok": 0, "warn": 0, "fail": 1}
    for status, expected in expected_codes.items():
        check = Check(name="torch", status=status, found="none", advice="pip install torch")
        monkeypatch.setattr(measuring, "check_all", lambda check=check: [check])
        code, out, _ = run(capsys, "doctor", "--json")
        assert code == expected
        assert json.loads(out)[0]["status"] == status


def test_doctor_ends_with_1_when_a_device_fails(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls([Check(name="act", status="fail", found="values differ by 2")])
    install("vla_crl.cli.device_check", check_device=calls)
    code, out, _ = run(capsys, "doctor", "--device", "cuda:0", "--json")
    assert code == 1
    assert json.loads(out)[0]["found"] == "values differ by 2"
    assert calls == [(("cuda:0",), {})]


def test_too_little_memory_is_told_in_a_line(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.rollout.evaluate", evaluate=Calls(MemoryError("Unable to allocate 4 TiB")))
    code, _, err = run(capsys, "evaluate", "--policy", "tiny", "--suite", "kitchen")
    assert code == 2
    assert re.search(
        r"vla-crl: error: .*test_main.py:\d+: MemoryError: Unable to allocate 4 TiB\n", err
    )


def test_training_that_meets_no_number_is_told_in_a_line(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.rollout.evaluate", evaluate=Calls(FloatingPointError("penalty is nan")))
    code, _, err = run(capsys, "evaluate", "--policy", "tiny", "--suite", "kitchen")
    assert code == 2
    assert re.search(r"error: .*test_main.py:\d+: FloatingPointError: penalty is nan\n", err)


def test_a_checkpoint_error_is_a_users_error(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.rollout.evaluate", evaluate=Calls(CheckpointError("a: cut off")))
    code, out, err = run(capsys, "evaluate", "--policy", "tiny", "--suite", "kitchen", "--json")
    assert (code, out) == (2, "")
    assert err.endswith("vla-crl: error: a: cut off\n")


def test_an_interrupted_command_ends_with_130(
    world: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("vla_crl.rollout.evaluate", evaluate=Calls(KeyboardInterrupt()))
    code, _, err = run(capsys, "evaluate", "--policy", "tiny", "--suite", "kitchen")
    assert code == 130
    assert err.endswith("vla-crl: interrupted\n")


@pytest.mark.parametrize(
    ("number", "ends", "code"),
    [(signal.SIGTERM, "ended by SIGTERM", 143), (signal.SIGINT, "interrupted", 130)],
)
def test_a_training_that_is_ended_from_outside_says_how_to_go_on(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    ends: str,
    code: int,
) -> None:
    def train(self: Trainer, *, resume: bool) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train", train)
    install("vla_crl.continual.recipe", TrainConfig=TrainConfig)
    install("vla_crl.continual.trainer", Trainer=Trainer)
    install("vla_crl.report.film", film_run=Calls())
    install("vla_crl.report.page", write_report=Calls())
    before = signal.getsignal(signal.SIGTERM)
    # A program that a shell began in the background ignores Ctrl-C, and so would its Python.
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for arguments in (("train", "demo"), ("train", "demo", "--resume")):
            ended, _, err = run(capsys, *arguments)
            assert ended == code
            assert err == f"vla-crl: {ends}; go on with: vla-crl train demo --resume\n"
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert signal.getsignal(signal.SIGTERM) == before


def test_seeds_that_are_ended_from_outside_are_all_gone_on_with(
    world: Path,
    install: Install,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(self: Trainer, *, resume: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train", train)
    install("vla_crl.continual.recipe", TrainConfig=TrainConfig)
    install("vla_crl.continual.trainer", Trainer=Trainer)
    install("vla_crl.report.page", write_report=Calls())
    install("vla_crl.report.several", write_reports=Calls())
    code, out, err = run(capsys, "train", "demo", "--seeds", "4", "2")
    assert (code, out) == (143, "")
    again = "vla-crl train demo --seeds 4 2 --resume"
    assert err.splitlines() == [
        "seed 4 of 4 2: runs/demo_seed4",
        f"vla-crl: ended by SIGTERM; go on with: {again}",
    ]
    assert not (world / "runs/demo_seed2").exists()


def test_the_console_script_is_installed() -> None:
    command = [str(Path(sys.executable).parent / "vla-crl"), "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("vla-crl 0.")


def test_a_reader_that_has_left_is_no_fault() -> None:
    program = "import sys; from vla_crl.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "list", "methods", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
