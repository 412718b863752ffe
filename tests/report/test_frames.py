import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from vla_crl.continual.metrics import compute_metrics
from vla_crl.continual.statistics import wilson_interval
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.errors import ConfigError
from vla_crl.report import frame, iterations


@pytest.fixture
def two_runs(make_run, tmp_path):
    """Two seeds, of which the second learns at another rate and is 5 successes better."""
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", offset=5, seed=1)]
    config = json.loads((runs[1] / "config.json").read_text())
    config["learner"]["learning_rate"] = 1e-4
    (runs[1] / "config.json").write_text(json.dumps(config))
    return runs


def test_a_frame_has_a_row_for_each_run_stage_and_task(two_runs):
    table = frame(two_runs)
    assert len(table) == 2 * 4 * 6
    row = table[(table.run == "b") & (table.stage == 1) & (table.task == "green_cube_in_tray")]
    assert row.to_dict("records") == [
        {
            "run": "b",
            "recipe": "demo",
            "suite": "tabletop_object",
            "method": None,
            "seed": 1,
            "learner.learning_rate": 1e-4,
            "acting": "deterministic",
            "stage": 1,
            "trained_task": "red_cube_in_basket",
            "task": "green_cube_in_tray",
            "split": "train",
            "successes": 52,
            "episodes": 100,
            "success": 0.52,
            "low": pytest.approx(wilson_interval(52, 100)[0]),
            "high": pytest.approx(wilson_interval(52, 100)[1]),
        }
    ]
    assert table[table.stage == 0].trained_task.isna().all()
    assert table.successes.dtype == table.stage.dtype == "int64"


def test_means_of_a_frame_are_the_metrics(two_runs):
    table = frame(two_runs)
    last = table[(table.stage == 3) & (table.split == "train")].groupby("run").success.mean()
    for run in two_runs:
        expected = compute_metrics(SuccessMatrix.read(run / "matrix.csv"))["avg"]
        assert expected is not None
        assert last[run.name] == pytest.approx(expected.value)


def test_sampled_evaluations_are_rows_of_their_own(run_path):
    table = frame(run_path)
    counts = table.groupby("acting").successes.sum()
    assert counts["deterministic"] - counts["sampled"] == 5 * 24


def test_iterations_are_the_rows_of_metrics(two_runs):
    table = iterations(two_runs)
    stored = pd.read_json(two_runs[0] / "metrics.jsonl", lines=True)
    own = table[table.run == "a"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own[[*stored.columns]], stored, check_dtype=False)
    assert [*table.columns][:9] == [
        *("run", "recipe", "suite", "method", "seed", "learner.learning_rate"),
        *("stage", "task", "iteration"),
    ]


def test_numbers_that_are_not_there_are_nan(two_runs):
    with (two_runs[0] / "metrics.jsonl").open("a") as file:
        row = {"stage": 3, "task": "x", "iteration": 33, "episodes": 2112, "success": None}
        file.write(json.dumps(row) + "\n")
    last = iterations(two_runs[0]).iloc[-1]
    assert pd.isna(last.success)
    assert pd.isna(last.kl)


def test_a_run_that_has_just_begun_gives_a_table_without_rows(make_run, tmp_path):
    run = make_run(tmp_path / "begun", num_stages=0)
    (run / "matrix.csv").unlink()
    assert [len(frame([run])), len(iterations([run]))] == [0, 0]
    assert [*frame([run]).columns][:7] == [
        *("run", "recipe", "suite", "method", "seed", "acting", "stage")
    ]


def test_without_pandas_the_extra_is_named(run_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"needs pandas.*pip install --editable '.\[pandas\]'"):
        frame([run_path])


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="not a run directory"):
        frame([tmp_path])


def test_the_example_of_the_documents_runs(two_runs, tmp_path, monkeypatch, capsys):
    document = (Path(__file__).parents[2] / "vla_crl" / "README.md").read_text(encoding="utf-8")
    section = document.partition("## Runs as tables")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a_seeds.md").touch()  # as --seeds leaves there
    for run in two_runs:
        run.rename(tmp_path / "runs" / run.name)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    first, second = capsys.readouterr().out.split("success  ")
    assert [line.split() for line in first.splitlines()[2:4]] == [
        ["a", "0", "0.516667", "0.876667"],  # (44 + 56 + 55) / 300 held out, 263 / 300 trained
        ["b", "1", "0.566667", "0.926667"],
    ]
    assert second


def test_runs_with_one_name_are_told_apart_by_the_folders_above(make_run, tmp_path):
    runs = [make_run(tmp_path / place / "run", seed=0) for place in ("here/x", "there/x")]
    assert frame(runs).run.unique().tolist() == ["here/x/run", "there/x/run"]
    assert iterations(runs).run.nunique() == 2


def test_a_run_that_is_named_twice_is_refused(run_path):
    with pytest.raises(ConfigError, match="is named twice; name each run once"):
        frame([run_path, run_path / ".." / run_path.name])
