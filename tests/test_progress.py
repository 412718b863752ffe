import pytest

from vla_crl import progress


def test_in_a_log_file_a_line_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with progress.track("counting", 4) as tracker:
        tracker.advance(1)
        tracker.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert "counting: 1 of 4" in lines[0]
    assert "counting: 3 of 4" in lines[1]


def test_short_work_leaves_no_lines_in_a_log_file(capsys: pytest.CaptureFixture[str]):
    with progress.track("counting", 4) as tracker:
        tracker.advance(4)
    assert "counting" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["exp[/red]1", "[bold]a", ":smile:", "[link=x]"])
def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    progress.console.print(text, soft_wrap=True)
    with progress.track(text, 1) as tracker:
        tracker.print(text)
        tracker.advance(1, text)
    progress.PlainConsole().print(text)
    said = capsys.readouterr()
    assert said.out == f"{text}\n"
    assert said.err.startswith(f"{text}\n{text}\n")
