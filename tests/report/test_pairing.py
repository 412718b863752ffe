"""Comparisons state by state: numbers that can be counted by hand, and every error."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_crl.continual.statistics import Pairs
from vla_crl.continual.success_matrix import Cell, append_stage
from vla_crl.errors import ConfigError
from vla_crl.report.pairing import compare_runs, read_outcomes, stage_tables
from vla_crl.report.run_record import RunRecord
from vla_crl.runs.directory import RunDirectory

Won = dict[tuple[int, str], str]
"""For stage and task one mark a state, from 100 on: + success, - failure."""

OUTCOMES: Won = {
    (0, "open"): "--+-", (0, "push"): "----", (0, "lift"): "+---",
    (1, "open"): "++++", (1, "push"): "----", (1, "lift"): "++--",
    (2, "open"): "-+++", (2, "push"): "++--", (2, "lift"): "-+--",
}  # fmt: skip


def make_run(path: Path, won: Won, **settings: object) -> RunRecord:
    """Write a run that trains "open", then "push", and holds out "lift"."""
    path.mkdir()
    config = {"suite": "kitchen", "seed": 0, "method": "sequential"} | settings
    (path / "config.json").write_text(json.dumps(config))
    run = RunDirectory(path)
    for stage in sorted({stage for stage, _ in won}):
        cells = [
            Cell(
                stage=stage,
                task=task,
                split="heldout" if task == "lift" else "train",
                successes=marks.count("+"),
                episodes=len(marks),
            )
            for (own, task), marks in won.items()
            if own == stage
        ]
        append_stage(run.matrix_file, cells)
    run.episodes.append(
        (stage, task, 100 + place, int(mark == "+"), 9, 0)
        for (stage, task), marks in won.items()
        for place, mark in enumerate(marks)
    )
    return RunRecord.read(path)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return make_run(tmp_path / "mine", OUTCOMES)


def test_a_run_is_compared_with_itself_before_training_and_after_each_tasks_stage(
    record: RunRecord,
) -> None:
    change, keeping = stage_tables(record)
    assert change.title == "From before training to after stage 2"
    assert change.tasks == {
        "open": Pairs(both=1, gained=2, lost=0, neither=1),
        "push": Pairs(both=0, gained=2, lost=0, neither=2),
        "lift": Pairs(both=0, gained=1, lost=1, neither=2),
    }
    assert change.groups == {"2 training tasks": Pairs(both=1, gained=4, lost=0, neither=3)}
    assert keeping.title == "From right after a task's own stage to after stage 2"
    assert keeping.tasks == {"open": Pairs(both=3, gained=0, lost=1, neither=0)}
    assert keeping.groups == {}  # of one task
    assert keeping.header[2:4] == ("own stage", "last")
    # 1 of 8 before, 5 of 8 after; p = 2 / 2^4
    (row, *_) = change.rows
    assert row[:5] == ("2 training tasks", "8", "13 %", "63 %", "+50.0")
    assert row[6:] == ("4", "0", "0.125")


def test_there_is_nothing_to_compare_before_the_first_stage_or_without_episodes(
    record: RunRecord, tmp_path: Path
) -> None:
    record.run.episodes.path.unlink()
    assert stage_tables(record) == []
    begun = {cell: marks for cell, marks in OUTCOMES.items() if cell[0] == 0}
    assert stage_tables(make_run(tmp_path / "begun", begun)) == []


def test_two_runs_are_compared_on_the_states_that_they_share(
    record: RunRecord, tmp_path: Path
) -> None:
    other = {cell: "++++++" for cell in OUTCOMES if cell[0] < 2 or cell[1] != "lift"}
    second = make_run(tmp_path / "ewc", other, method="ewc", num="4")
    found = compare_runs(record, second)
    assert (found.names, found.stage) == (("mine", "ewc"), 2)
    assert found.settings == (("method", "sequential", "ewc"), ("num", "not there", "4"))
    assert found.table.tasks == {
        "open": Pairs(both=3, gained=1, lost=0, neither=0),
        "push": Pairs(both=2, gained=2, lost=0, neither=0),
    }
    assert found.total == Pairs(both=5, gained=3, lost=0, neither=0)
    assert found.table.groups == {"2 all shared tasks": found.total}
    assert found.table.columns == ("mine", "ewc", "only ewc", "only mine")
    assert found.sentence == (  # p = 2 / 2^3
        "After stage 2 of both, on 8 shared test states, no difference between mine and ewc is "
        "measurable: 63 % of mine, 100 % of ewc (+37.5 points, 95 % interval \N{MINUS SIGN}2.7 to "
        "+69.4, McNemar's exact p: 0.250)."
    )


def test_a_difference_is_claimed_where_its_interval_excludes_none(tmp_path: Path) -> None:
    def won(mark: str) -> Won:
        return {(stage, task): mark * 20 for stage in (0, 1) for task in ("open", "lift")}

    runs = [make_run(tmp_path / mark, won(mark), method=mark) for mark in "+-"]
    better, worse = "+ succeeds more often than -", "100 % of +, 0 % of -"
    for pair in (runs, runs[::-1]):
        sentence = compare_runs(*pair).sentence
        assert better in sentence
        assert "p: < 0.001" in sentence
    assert worse in compare_runs(*runs).sentence


def test_runs_of_one_name_are_told_apart_by_their_paths(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    second = make_run(tmp_path / "other" / "mine", OUTCOMES, method="ewc")
    assert compare_runs(record, second).names == (str(record.run.path), str(second.run.path))


def test_runs_that_cannot_be_compared_say_why(record: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are one run; name another to compare it with"):
        compare_runs(record, record)
    other = make_run(tmp_path / "suite", OUTCOMES, suite="garage")
    with pytest.raises(ConfigError, match="are on the suites 'kitchen' and 'garage', so their te"):
        compare_runs(record, other)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.json").write_text('{"suite": "kitchen"}')
    with pytest.raises(ConfigError, match=r"one has no matrix\.csv, no results yet"):
        compare_runs(record, RunRecord.read(tmp_path / "new"))
    later = {cell: marks for cell, marks in OUTCOMES.items() if cell[0] == 2}
    early = {cell: marks for cell, marks in OUTCOMES.items() if cell[0] == 1}
    runs = make_run(tmp_path / "later", later), make_run(tmp_path / "early", early)
    with pytest.raises(ConfigError, match="no stage is evaluated in both"):
        compare_runs(*runs)
    runs[0].run.episodes.path.unlink()
    with pytest.raises(ConfigError, match=r"share no evaluated test state after stage 2; both nee"):
        compare_runs(runs[0], record)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2,open,100,1,9,0", "task 'open' from state 100 after stage 2 is there twice; restore"),
        ("2,open,105,yes,9,0", "line '2,open,105,yes,9,0' is no episode; expected stage,task,st"),
        ("2,open,105,1,9", "line '2,open,105,1,9' is no episode"),
        ("two,open,105,1,9,0", "line 'two,open,105,1,9,0' is no episode"),
    ],
)
def test_a_line_that_is_no_episode_is_an_error(record: RunRecord, line: str, message: str) -> None:
    with record.run.episodes.path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ConfigError, match=rf"episodes\.csv: the .*{re.escape(message)}"):
        read_outcomes(record.run.episodes, {(2, "open")})


def test_only_the_cells_asked_for_are_read(record: RunRecord) -> None:
    assert read_outcomes(record.run.episodes, {(2, "push"), (3, "push")}) == {
        (2, "push"): {100: True, 101: True, 102: False, 103: False}
    }


@pytest.mark.usefixtures("record")
def test_the_report_of_two_runs_of_different_methods_compares_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vla_crl.cli.main import main

    make_run(tmp_path / "ewc", OUTCOMES, method="ewc")
    text = tmp_path / "both.md"
    runs = [str(tmp_path / name) for name in ("mine", "ewc")]
    assert main(["report", *runs, "--markdown", str(text)]) == 0
    said = "on 12 shared test states, no difference between mine and ewc is measurable"
    assert said in capsys.readouterr().err
    assert text.read_text().startswith("# mine beside ewc\n\nAfter stage 2 of both, on 12 shared")
    assert "| open | 4 | 75 % | 75 % | +0.0 |" in text.read_text()
    assert "| method | sequential | ewc |" in text.read_text()
    for run in runs:
        html = (Path(run) / "report.html").read_text()
        assert '<section id="comparison">' in html
        assert '<section id="paired">' in html
        assert said in html
    assert main(["report", runs[0]]) == 0
    assert "comparison" not in (tmp_path / "mine/report.html").read_text()


@pytest.mark.usefixtures("record")
def test_runs_that_cannot_be_compared_get_their_pages_but_no_common_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vla_crl.cli.main import main

    make_run(tmp_path / "other", OUTCOMES, suite="garage")
    runs = [str(tmp_path / name) for name in ("mine", "other")]
    assert main(["report", *runs]) == 0
    assert "not compared: " in capsys.readouterr().err
    assert all((Path(run) / "report.html").is_file() for run in runs)
    assert main(["report", *runs, "--markdown", str(tmp_path / "both.md")]) == 2
    assert "are on the suites 'kitchen' and 'garage'" in capsys.readouterr().err
    assert not (tmp_path / "both.md").exists()


def test_what_runs_were_not_made_alike_in_stands_beside_their_comparison(
    record: RunRecord, tmp_path: Path
) -> None:
    from vla_crl.report.several import write_reports

    second = make_run(tmp_path / "ewc", OUTCOMES, method="ewc").run.path
    (second / "versions.json").write_text('{"cpu_model": "Other CPU", "num_cores": 2}')
    write_reports([record.run.path, second], tmp_path / "both.md")
    told = "hardware: None and 'Other CPU'"
    assert f"**The runs were not made alike.** {told}." in (tmp_path / "both.md").read_text()
    assert "Not made alike: hardware" in (second / "report.html").read_text()


def test_the_markdown_of_a_run_has_its_stages_state_by_state(
    record: RunRecord, tmp_path: Path
) -> None:
    from vla_crl.report.tables import write_markdown_summary

    text = write_markdown_summary(record.run.path, tmp_path / "mine.md").read_text()
    assert "### From before training to after stage 2\n\n|  | states | before | after |" in text
    assert "| open | 4 | 100 % | 75 % | \N{MINUS SIGN}25.0 |" in text


MakeRun = Callable[..., Path]


def test_two_seeds_of_one_experiment_are_averaged_not_compared(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vla_crl.report.several import write_reports

    write_reports([make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)])
    assert "compared" not in capsys.readouterr().err
