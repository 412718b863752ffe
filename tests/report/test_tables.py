"""Tables hold the numbers of the run, missing ones as missing."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_crl.cli.main import main
from vla_crl.continual.success_matrix import Cell, SuccessMatrix
from vla_crl.errors import ConfigError
from vla_crl.progress import PlainConsole
from vla_crl.report.page import write_report
from vla_crl.report.run_record import RunRecord
from vla_crl.report.tables import (
    print_results,
    run_facts,
    runs_markdown,
    summarize_runs,
    write_markdown_summary,
)
from vla_crl.report.wording import MISSING

MakeRun = Callable[..., Path]


def test_the_record_reads_every_file_of_the_run(run_path: Path) -> None:
    record = RunRecord.read(run_path)
    assert record.name == "demo"
    assert record.num_episodes == 3 * 2048
    assert record.wall_s == pytest.approx(96 * 3.1)
    assert list(record.stages) == [1, 2, 3]
    assert record.matrix is not None
    assert record.sampled_matrix is not None
    assert record.matrix.rates[0, 0] == 0.46
    assert record.sampled_matrix.rates[0, 0] == 0.41
    assert [path.name for path in record.videos] == ["stage_3.mp4"]


def test_a_record_needs_only_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    record = RunRecord.read(tmp_path)
    assert (record.matrix, record.wall_s, record.num_episodes) == (None, None, 0)
    assert run_facts(record) == []
    with pytest.raises(ConfigError, match=r"not a run directory, it has no config\.json"):
        RunRecord.read(tmp_path / "elsewhere")


def test_results_fit_the_terminal_of_a_run_that_is_not_complete(
    make_run: MakeRun, tmp_path: Path
) -> None:
    matrix = RunRecord.read(make_run(tmp_path / "going", num_stages=2)).matrix
    assert matrix is not None
    console = PlainConsole(width=80)
    with console.capture() as capture:
        print_results(matrix, console)
    lines = [re.sub(r"\s+", " ", line) for line in capture.get().splitlines()]
    assert f"│ red cube in basket │ trained │ 46 │ 88 │ 85 │ {MISSING} │" in lines
    assert f"│ Final success (AVG) │ avg │ {MISSING} │ {MISSING} │" in lines


def test_stages_that_do_not_fit_the_terminal_stand_in_further_tables() -> None:
    names = [f"task_{number}" for number in range(10)]
    cells = [
        Cell(stage=stage, task=task, split="train", successes=stage, episodes=100)
        for stage in range(21)
        for task in names
    ]
    console = PlainConsole(width=80)
    with console.capture() as capture:
        print_results(SuccessMatrix.from_cells(cells, rounds=2), console)
    text = re.sub(r" +", " ", capture.get())
    assert "│ task 3 │ trained │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │" in text
    assert "│ task 3 │ trained │ 14 │ 15 │ 16 │ 17 │ 18 │ 19 │ 20 │" in text


def test_results_show_metrics_with_intervals(run_path: Path) -> None:
    matrix = RunRecord.read(run_path).matrix
    assert matrix is not None
    console = PlainConsole(width=80)
    with console.capture() as capture:
        print_results(matrix, console)
    assert "87.7 % │ 83.2 to 90.6 %" in capture.get()  # (82 + 88 + 93) / 3


def test_the_summary_of_a_run_is_complete_markdown(run_path: Path, tmp_path: Path) -> None:
    text = write_markdown_summary(run_path, tmp_path / "demo.md").read_text()
    assert text.startswith(
        "# demo\n\n3 tasks trained in a row: mean success rose from 46 % to 88 %"
    )
    assert "| training episodes | 6,144 |" in text
    assert "| hardware | Example CPU @ 2.10GHz, 2 cores |" in text
    assert "| code | vla-crl 0.1.0, commit 0123456789ab |" in text
    assert "| nbt_final | Forgetting (NBT, lower is better) | +4.5 |" in text  # (88-82 + 91-88) / 2
    assert "| after stage 3: blue cylinder in basket | 82 % (73 to 88) | 88 % (80 to 93) |" in text
    assert "## The same with the sampling policy" in text


def test_there_is_no_summary_before_the_first_evaluation(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no matrix\.csv, nothing to summarise yet"):
        write_markdown_summary(tmp_path, tmp_path / "summary.md")
    assert not (tmp_path / "summary.md").exists()


def test_seeds_are_averaged_with_standard_error_and_number(
    make_run: MakeRun, tmp_path: Path
) -> None:
    paths = [
        make_run(tmp_path / f"seed_{seed}", offset=offset, seed=seed)
        for seed, offset in enumerate([-4, 0, 4])
    ]
    summary = summarize_runs(paths)
    # avg is 263 / 300 = .87667 and shifts by -.04, 0, .04: sd .04, standard error .04 / sqrt(3).
    assert summary.values["avg"] == pytest.approx((0.83667, 0.87667, 0.91667), abs=1e-5)
    item = summary.summaries["avg"]
    assert item is not None
    assert item.mean == pytest.approx(0.87667, abs=1e-5)
    assert item.standard_error == pytest.approx(0.023094, abs=1e-6)
    text = runs_markdown(summary)
    assert "| metric | seed_0 | seed_1 | seed_2 | mean ± SE (n = 3) | 95 % interval (t) |" in text
    # half width 4.3027 * .023094 = .09937
    assert "| AVG `avg` | 83.7 % | 87.7 % | 91.7 % | 87.7 % ± 2.3 | 77.7 to 97.6 % |" in text
    assert "| seed | 0 | 1 | 2 |  |  |" in text
    assert "| before training | 46 (42 to 50) |" in text
    assert "training episodes: 6,144; " in text


def test_a_single_seed_is_shown_without_an_error_bar(make_run: MakeRun, tmp_path: Path) -> None:
    text = runs_markdown(summarize_runs([make_run(tmp_path / "only")]))
    assert "| AVG `avg` | 87.7 % | 87.7 % | \N{EN DASH} |" in text
    assert "mean ± SE (n = 1)" in text


def test_a_metric_that_one_run_lacks_has_no_mean(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "done"), make_run(tmp_path / "going", num_stages=2, seed=1)]
    summary = summarize_runs(paths)
    assert summary.values["avg"] == (pytest.approx(0.87667, abs=1e-5), None)
    assert summary.summaries["avg"] is None
    assert summary.summaries["fwt_gem"] is not None  # needs stages 0 to 2 only
    assert "| AVG `avg` | 87.7 % | \N{EN DASH} | \N{EN DASH} | \N{EN DASH} |" in runs_markdown(
        summary
    )


def test_runs_in_different_orders_have_no_common_matrix(make_run: MakeRun, tmp_path: Path) -> None:
    first, other = make_run(tmp_path / "first"), make_run(tmp_path / "other", seed=1)
    text = (other / "matrix.csv").read_text()
    text = text.replace("red_cube_in_basket", "SWAP").replace(
        "blue_cylinder_in_basket", "red_cube_in_basket"
    )
    (other / "matrix.csv").write_text(text.replace("SWAP", "blue_cylinder_in_basket"))
    text = runs_markdown(summarize_runs([first, other]))
    assert "differ in the order of tasks" in text
    assert "| before training |" not in text


def test_an_average_of_runs_that_were_not_made_alike_says_so(
    make_run: MakeRun, tmp_path: Path
) -> None:
    paths = [make_run(tmp_path / f"seed_{seed}", seed=seed) for seed in (0, 1)]
    assert "not made alike" not in runs_markdown(summarize_runs(paths))
    file = paths[1] / "versions.json"
    versions = json.loads(file.read_text())
    versions["packages"]["mujoco"] = "3.7.0"
    file.write_text(json.dumps(versions | {"conditions": {"physics": "fast"}}))
    summary = summarize_runs(paths)
    installed = json.loads((paths[0] / "versions.json").read_text())["packages"]["mujoco"]
    assert set(summary.unlike) == {
        f"mujoco: '{installed}' and '3.7.0'",
        "physics: None and 'fast'",
    }
    assert runs_markdown(summary).startswith("**The runs were not made alike.** ")


def test_runs_that_cannot_be_averaged_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    first, other = make_run(tmp_path / "first"), make_run(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="no run given"):
        summarize_runs([])
    matrix = (other / "matrix.csv").read_text()
    (other / "matrix.csv").write_text(matrix.replace("red_cube_in_tray", "ball"))
    with pytest.raises(ConfigError, match=r"other: its tasks are not those of .*first"):
        summarize_runs([first, other])
    (other / "matrix.csv").unlink()
    with pytest.raises(ConfigError, match=r"other: no matrix\.csv, no results yet"):
        summarize_runs([first, other])


def test_columns_of_runs_with_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{seed}" / "run", seed=seed) for seed in (0, 1)]
    assert summarize_runs(runs).names == ("0/run", "1/run")


def test_only_runs_that_differ_in_their_seed_are_averaged(
    make_run: MakeRun, tmp_path: Path
) -> None:
    first, other = make_run(tmp_path / "first"), make_run(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"seeds \[0, 1, 0\]: one is there twice"):
        summarize_runs([first, other, first])
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace("0.0003", "0.001"))
    message = (
        r"other: differs from .*first in learner\.learning_rate; only runs that differ in their"
    )
    with pytest.raises(ConfigError, match=message):
        summarize_runs([first, other])


def test_the_interval_of_a_success_rate_stays_a_success_rate(
    make_run: MakeRun, tmp_path: Path
) -> None:
    paths = [
        make_run(tmp_path / f"seed_{seed}", offset=offset, seed=seed)
        for seed, offset in enumerate([-30, 0])
    ]
    assert "| 72.7 % ± 15.0 | 0.0 to 100.0 % |" in runs_markdown(summarize_runs(paths))


def test_facts_tell_the_suites_conditions_and_the_packages(tmp_path: Path) -> None:
    versions = {
        "conditions": {"physics": "exact", "wait_steps": 10},
        "packages": {"mujoco": "3.8.1", "rich": "15.0"},
    }
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "versions.json").write_text(json.dumps(versions))
    facts = dict(run_facts(RunRecord.read(tmp_path)))
    assert facts == {
        "simulation": "physics exact, wait_steps 10",
        "packages": "mujoco 3.8.1",
    }


def test_facts_tell_how_long_training_and_the_whole_command_took(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "versions.json").write_text('{"command_s": 171.4}')
    (tmp_path / "metrics.jsonl").write_text('{"stage": 1, "episodes": 64, "wall_s": 119.0}\n')
    facts = dict(run_facts(RunRecord.read(tmp_path)))
    assert facts["training time"] == "2 min (wall clock)"
    assert facts["whole command"] == "3 min (with last evaluation and films)"


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 316 tasks in a row, every task tested after every stage: 100,172 cells."""
    path = tmp_path_factory.mktemp("large")
    (path / "config.json").write_text("{}")
    lines = [
        f"{stage},task_{task},train,{(stage + task) % 51},50"
        for stage in range(317)
        for task in range(316)
    ]
    text = "\n".join(["stage,task,split,successes,episodes", *lines]) + "\n"
    (path / "matrix.csv").write_text(text)
    return path


def test_of_a_matrix_of_100000_cells_the_first_and_last_stage_are_told(
    large_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", str(large_run / "matrix.csv")]) == 0
    out = capsys.readouterr().out
    assert "100,172 cells, of which the first and the last stage follow" in out
    assert len(out.splitlines()) < 400
    assert "Final success (AVG)" in out


def test_a_report_of_100000_cells_says_where_they_are(
    large_run: Path,
) -> None:
    html = write_report(large_run).read_text(encoding="utf-8")
    assert "100,172 cells, too many to be read here: matrix.csv has them." in html
    assert len(html) < 2_000_000
    text = write_markdown_summary(large_run, large_run / "summary.md").read_text()
    assert "100,172 cells, too many to be read here" in text
    assert "The matrices have 100,172 cells" in runs_markdown(summarize_runs([large_run]))


def test_runs_made_with_other_sources_are_not_alike(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)]
    for path, fingerprint in zip(paths, ("0a1b", "2c3d"), strict=True):
        versions = json.loads((path / "versions.json").read_text())
        versions["sources"] = [{"folder": "sources", "fingerprint": fingerprint, "files": {}}]
        if fingerprint == "2c3d":
            changed = {"folder": "sources_2", "fingerprint": "4e5f", "files": {}, "since_stage": 2}
            versions["sources"].append(changed)
        (path / "versions.json").write_text(json.dumps(versions))
    summary = summarize_runs(paths)
    assert summary.unlike == ("own sources: ['0a1b'] and ['2c3d', '4e5f']",)
    assert summary.facts[0]["own sources"] == "0a1b"
    assert summary.facts[1]["own sources"] == "2c3d, 4e5f from stage 2"
