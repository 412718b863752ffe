from vla_crl.cli.main import main


def test_one_run_is_written_as_page_and_as_markdown(make_run, tmp_path, capsys):
    run, text = make_run(tmp_path / "a"), tmp_path / "a.md"
    assert main(["report", str(run), "--markdown", str(text)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert "## Metrics" in text.read_text()


def test_several_runs_are_averaged_over_seeds(make_run, tmp_path):
    runs, text = [make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)], tmp_path / "both.md"
    assert main(["report", *map(str, runs), "--markdown", str(text)]) == 0
    assert "mean ± SE (n = 2)" in text.read_text()


def test_an_existing_summary_is_not_overwritten(make_run, tmp_path, capsys):
    text = tmp_path / "a.md"
    text.write_text("precious")
    assert main(["report", str(make_run(tmp_path / "a")), "--markdown", str(text)]) == 2
    assert "exists; nothing was overwritten" in capsys.readouterr().err
    assert text.read_text() == "precious"
