import dataclasses
import errno
import fcntl
import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vla_crl.errors import ConfigError
from vla_crl.runs.directory import RunDirectory, git_state


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    clip_range: float = 0.2


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    suite: str = "kitchen"
    tasks: tuple[str, ...] = ("a", "b")
    learner: LearnerConfig = LearnerConfig()


def create(path: Path) -> RunDirectory:
    return RunDirectory.create(path, RunConfig(), seed=7, command=["vla-crl", "train", "demo"])


def test_a_new_run_holds_its_config_and_what_made_it(tmp_path: Path) -> None:
    run = create(tmp_path / "runs/first")
    assert run.read_config() == {
        "suite": "kitchen",
        "tasks": ["a", "b"],
        "learner": {"clip_range": 0.2},
    }
    versions = run.read_versions()
    assert versions["seed"] == 7
    assert versions["command"] == ["vla-crl", "train", "demo"]
    assert versions["packages"]["numpy"]
    assert versions["num_cores"] >= 1
    assert {"git", "python", "platform", "cpu_model", "vla_crl"} <= versions.keys()
    assert run.checkpoints.is_dir()
    assert run.checkpoint(2) == tmp_path / "runs/first/checkpoints/stage_2"
    assert RunDirectory.open(run.path) == run


def test_every_file_lies_inside_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    files = (run.matrix_file, run.sampled_matrix_file, run.report_file, run.metrics_file)
    assert [file.name for file in files] == [
        "matrix.csv",
        "matrix_sampled.csv",
        "report.html",
        "metrics.jsonl",
    ]
    assert all(path.parent == tmp_path for path in (*files, run.videos, run.plots))


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    create(tmp_path)
    assert (tmp_path / "config.json").is_file()


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    create(tmp_path / "run")
    before = (tmp_path / "run/versions.json").read_bytes()
    message = "run: exists and is not empty; nothing was overwritten. Continue it with --resume"
    with pytest.raises(ConfigError, match=message):
        create(tmp_path / "run")
    assert (tmp_path / "run/versions.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"cannot be made \(.*\); give another --run-dir"):
        create(tmp_path / "notes.txt" / "run")


def test_a_folder_of_other_files_is_not_said_to_be_a_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"nothing was overwritten\. Choose another --run-dir"):
        create(tmp_path)


def test_empty_folders_of_a_run_killed_at_its_start_are_used(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    assert create(tmp_path / "run").config_file.is_file()


def test_what_is_left_of_a_killed_creation_is_in_nobodys_way(tmp_path: Path) -> None:
    create(tmp_path / "run")
    for left in (".versions.json.99999999", "versions.json", ".config.json.99999999"):
        run = tmp_path / f"run_{left}"
        (run / "checkpoints").mkdir(parents=True)
        (run / left).write_text('{"half')
        create(run)
        assert {path.name for path in run.iterdir() if path.is_file()} == {
            "config.json",
            "versions.json",
        }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/.notes.99999999").write_text("of somebody else")
    with pytest.raises(ConfigError, match="nothing was overwritten"):
        create(tmp_path / "mine")
    assert (tmp_path / "mine/.notes.99999999").exists()


def test_who_has_the_lock_removes_what_killed_processes_were_writing(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    (run.videos / ".a.mp4.99999999").write_text("half")
    with run.locked():
        assert [*run.videos.iterdir()] == []


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    message = "run: another process is training in it"
    with run.locked(), pytest.raises(ConfigError, match=message), run.locked():
        pass
    with run.locked():  # free again
        pass


def test_a_file_is_not_overwritten_by_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="nothing was overwritten"):
        create(tmp_path / "run")


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory, it has no config.json"):
        RunDirectory.open(tmp_path)


def test_metrics_come_back_as_written(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert run.read_metrics() == []
    run.append_metrics({"stage": 1, "episodes": 2, "success": 0.5})
    run.append_metrics({"stage": 1, "episodes": 2, "success": 0.75})
    assert run.read_metrics() == [
        {"stage": 1, "episodes": 2, "success": 0.5},
        {"stage": 1, "episodes": 2, "success": 0.75},
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_stored_as_null(tmp_path: Path, value: float) -> None:
    run = create(tmp_path / "run")
    run.append_metrics({"kl": value})
    assert run.metrics_file.read_text() == '{"kl": null}\n'


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.append_metrics({"stage": 1, "episodes": 2})
    with run.metrics_file.open("a") as file:
        file.write('{"stage": 2, "succ')
    assert run.read_metrics() == [{"stage": 1, "episodes": 2}]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.metrics_file.write_text('{"stage": 1, "episodes": 2}\n{"sta\n{"stage": 2}\n')
    with pytest.raises(ConfigError, match="metrics.jsonl:2: not JSON"):
        run.read_metrics()


def test_a_resumed_run_drops_the_rows_it_will_write_again(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    places = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    for stage, iteration in places:
        run.append_metrics({"stage": stage, "iteration": iteration, "episodes": 1})
        run.training_episodes.append([(stage, iteration, 7, "open, then close", 3, 7, 12, 1)] * 2)
    for file, torn in (
        (run.metrics_file, '{"stage": 1, "succ'),
        (run.training_episodes.path, "1,1,7,op"),
    ):
        with file.open("a") as end:
            end.write(torn)

    def lines() -> list[str]:
        return run.training_episodes.path.read_text().splitlines()

    run.keep_until(2, 2)
    assert [(row["stage"], row["iteration"]) for row in run.read_metrics()] == places[:4]
    assert lines()[0] == "stage,iteration,episode,task,state_id,group,num_steps,success"
    assert lines()[1] == '1,1,7,"open, then close",3,7,12,1'
    assert [line[:3] for line in lines()[1:]] == ["1,1"] * 2 + ["1,2"] * 2 + ["2,1"] * 2 + [
        "2,2"
    ] * 2
    run.keep_until(1, float("inf"))
    assert [row["stage"] for row in run.read_metrics()] == [1, 1]
    assert len(lines()) == 5
    run.training_episodes.append([])
    assert len(lines()) == 5


def test_rows_that_a_state_goes_on_from_are_missed(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    for iteration in (1, 3):
        run.append_metrics({"stage": 2, "iteration": iteration, "episodes": iteration})
        run.training_episodes.append([(2, iteration, 7, "lift", 3, 7, 12, 1)] * 2)
    run.require_rows(2, 1, 2)
    message = "metrics.jsonl: lacks iteration 2 of stage 2, which .*state goes on from; restore"
    with pytest.raises(ConfigError, match=message):
        run.require_rows(2, 3, 4)
    run.append_metrics({"stage": 2, "iteration": 2, "episodes": 2})
    run.require_rows(2, 3, 4)
    message = (
        "_episodes.csv: has 4 episodes of stage 2 up to iteration 3, but .*state .* after 5; r"
    )
    with pytest.raises(ConfigError, match=message):
        run.require_rows(2, 3, 5)
    run.training_episodes.path.unlink()
    with pytest.raises(ConfigError, match="training_episodes.csv: has 0 episodes"):
        run.require_rows(2, 3, 4)


def test_a_header_of_episodes_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.training_episodes.path.write_text("stage,iter")
    run.keep_until(-1, float("inf"))
    assert run.training_episodes.path.read_text() == (
        "stage,iteration,episode,task,state_id,group,num_steps,success\n"
    )


def test_a_row_of_metrics_without_iteration_is_not_dropped_silently(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.append_metrics({"stage": 1, "episodes": 2})
    with pytest.raises(ConfigError, match="metrics.jsonl:1: no 'iteration'"):
        run.keep_until(1, 1)


def test_the_same_config_may_resume(tmp_path: Path) -> None:
    create(tmp_path / "run").require_config(RunConfig())


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    policy: str
    base: str | None = None
    seed: int = 0


def test_a_policy_is_known_by_its_weights_wherever_it_lies(tmp_path: Path) -> None:
    run = RunDirectory.create(
        tmp_path / "run", PolicyRun(policy="runs/base"), seed=0, command=[], policy_weights="0a1b"
    )
    moved = PolicyRun(policy="/elsewhere/base", base="/elsewhere/whole")
    run.require_config(moved, "0a1b")
    message = "began with a policy of the weights 0a1b, but '/elsewhere/base' has ffff; restore it"
    with pytest.raises(ConfigError, match=message):
        run.require_config(moved, "ffff")
    with pytest.raises(ConfigError, match=r"seed is 0 there but 1 now \(keys that differ: seed\)"):
        run.require_config(replace(moved, seed=1), "0a1b")


def test_of_an_older_run_the_policy_is_known_by_its_name(tmp_path: Path) -> None:
    config = PolicyRun(policy="runs/base")
    run = RunDirectory.create(tmp_path / "run", config, seed=0, command=[])
    run.require_config(config, "0a1b")
    with pytest.raises(ConfigError, match="policy is 'runs/base' there but 'base' now"):
        run.require_config(replace(config, policy="base"), "0a1b")


def test_another_config_may_not_resume(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    changed = replace(RunConfig(), learner=LearnerConfig(clip_range=0.3), tasks=("a",))
    message = (
        r"config.json: learner.clip_range is 0.2 there but 0.3 now "
        r"\(keys that differ: learner.clip_range, tasks\). Resume it with the command that began "
        r"it and --resume \(vla-crl train demo\), or start a new run"
    )
    with pytest.raises(ConfigError, match=message):
        run.require_config(changed)


def test_a_broken_config_file_is_an_error(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.config_file.write_text('{"suite": ')
    with pytest.raises(ConfigError, match="config.json: not JSON"):
        run.read_config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"null", "got 'null', expected a JSON object"),
        (b'{"stage": 1}', "no 'episodes'"),
        (
            b'{"stage": "1", "episodes": 1}',
            r"metrics.jsonl:2: stage = '1' \(str\), expected int",
        ),
        (b'{"stage": 1, "episodes": 1, "kl": [1]}', r"metrics.jsonl:2: kl = \[1\] \(list\)"),
        (b'{"stage": 1, "episodes": 1, "kl": NaN}', "metrics.jsonl:2: kl = nan, expected a finite"),
        (b"\xff", "metrics.jsonl: not a text file in UTF-8"),
    ],
)
def test_a_damaged_line_of_metrics_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    run = create(tmp_path / "run")
    run.metrics_file.write_bytes(b'{"stage": 1, "episodes": 5}\n' + text + b"\n")
    with pytest.raises(ConfigError, match=message):
        run.read_metrics()
    run.config_file.write_bytes(b"[]")
    with pytest.raises(ConfigError, match=r"config.json: got '\[\]', expected a JSON object"):
        run.read_config()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config", {"rounds": 10**6}, "config.json: rounds = 1000000, expected at least 1 and at"),
        (
            "versions",
            {"packages": [1]},
            r"versions.json: packages = \[1\] \(list\), expected a tab",
        ),
        ("versions", {"git": {"commit": 1}}, "versions.json:git: key 'dirty' of GitState is missi"),
    ],
)
def test_records_of_other_types_are_refused(tmp_path: Path, name, content, message: str) -> None:
    run = create(tmp_path / "run")
    getattr(run, f"{name}_file").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        getattr(run, f"read_{name}")()


def test_a_missing_versions_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="versions.json: cannot be read"):
        RunDirectory(tmp_path).read_versions()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_stored_with_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) is None  # a repository without a commit
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a.txt").write_text("two")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_json_files_end_with_a_newline(tmp_path: Path) -> None:
    text = create(tmp_path / "run").config_file.read_text()
    assert text.endswith("}\n")
    json.loads(text)


@dataclasses.dataclass
class Rates:
    learning_rate: float


def test_a_setting_that_is_not_finite_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="a setting is not a finite number"):
        RunDirectory.create(tmp_path / "run", Rates(float("inf")), seed=0, command=[])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/stage_1", ".lock"])
def test_links_in_a_run_are_not_followed_for_writing(tmp_path: Path, name: str) -> None:
    run = create(tmp_path / "run")
    mine = tmp_path / "mine"
    (run.path / name).symlink_to(mine)
    with pytest.raises(ConfigError) as caught, run.locked():
        pass
    assert str(caught.value) == (
        f"{run.path / name}: is a link to {mine}, and a run is written to its own folder only; "
        "replace the link by what it points to"
    )
    assert not mine.exists()


def test_where_locks_are_not_known_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    run = create(tmp_path / "run")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with run.locked():
        pass
    assert caplog.messages == [
        f"{run.path}: this file system has no locks (No locks available); see to it yourself that "
        "no other process trains in it"
    ]
