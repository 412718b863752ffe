"""Files with one line an episode."""

from pathlib import Path

import pytest

from vla_crl.errors import ConfigError
from vla_crl.runs.episodes import EVALUATION_COLUMNS, TRAINING_COLUMNS, EpisodeFile

ROWS = [(stage, "open, then close", 7, 1, 12, 0) for stage in (0, 0, 1)]


@pytest.fixture
def file(tmp_path: Path) -> EpisodeFile:
    file = EpisodeFile(tmp_path / "episodes.csv", EVALUATION_COLUMNS, 1)
    file.append(ROWS[:2])
    file.append(ROWS[2:])
    return file


def test_lines_come_back_as_added_without_one_that_was_cut_off(file: EpisodeFile) -> None:
    with file.path.open("a") as end:
        end.write('1,"open, th')
    assert [*file.lines()] == [[str(value) for value in row] for row in ROWS]
    assert file.places() == [(0,), (0,), (1,)]
    assert [*EpisodeFile(file.path.with_name("none.csv"), ("stage",), 1).lines()] == []


def test_what_a_resumed_run_writes_again_is_dropped(file: EpisodeFile) -> None:
    file.keep_until(0)
    assert file.path.read_text() == (
        "stage,task,state_id,success,num_steps,seed\n"
        '0,"open, then close",7,1,12,0\n0,"open, then close",7,1,12,0\n'
    )
    file.keep_until(-1)
    assert [*file.lines()] == []
    file.append(ROWS)
    assert file.places() == [(0,), (0,), (1,)]


@pytest.mark.parametrize("line", ["junk", "x,a,7,1,12,0", "2,a,7,1,12"])
def test_a_damaged_line_is_told_and_nothing_dropped(file: EpisodeFile, line: str) -> None:
    with file.path.open("a") as end:
        end.write(f"{line}\n")
    text = file.path.read_text()
    message = rf"episodes\.csv: the line '{line}' does not begin with stage, or has not 6 col.*rest"
    with pytest.raises(ConfigError, match=message):
        file.keep_until(0)
    assert file.path.read_text() == text


def test_a_file_of_other_columns_is_refused(file: EpisodeFile) -> None:
    file.path.write_text("stage,task\n0,a\n")
    with pytest.raises(
        ConfigError, match=r"csv:1: got the columns stage,task, expected stage,task,s"
    ):
        file.places()
    file.path.write_text(",".join(TRAINING_COLUMNS) + "\n")
    with pytest.raises(ConfigError, match=r"older versions .*rename the file to training_episodes"):
        file.places()
    file.path.write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match=r"episodes\.csv: not a text file"):
        file.places()
