"""SuccessMatrix: convention, files in both formats, and every error with its place."""

import json
from pathlib import Path

import numpy as np
import pytest

from vla_crl.continual.success_matrix import Cell, SuccessMatrix, append_stage
from vla_crl.contracts import Split
from vla_crl.errors import ConfigError

HEADER = "stage,task,split,successes,episodes\n"


def cell(stage: int, task: str, successes: int, split: Split = "train", episodes: int = 10) -> Cell:
    return Cell(stage=stage, task=task, split=split, successes=successes, episodes=episodes)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rates_are_nan_where_a_task_was_not_evaluated() -> None:
    matrix = SuccessMatrix.from_cells(
        [cell(0, "b", 2), cell(0, "a", 0), cell(0, "x", 5, "heldout"), cell(1, "b", 9)]
    )
    assert matrix.train_tasks == ("b", "a")
    assert matrix.heldout_tasks == ("x",)
    assert matrix.num_stages == 2
    assert matrix.evaluated_stages == (0, 1)
    nan = np.nan
    expected = [[0.2, 0.0, 0.5], [0.9, nan, nan], [nan, nan, nan]]
    np.testing.assert_array_equal(matrix.rates, expected)


def test_the_training_order_is_that_of_stage_0_wherever_its_rows_stand(tmp_path: Path) -> None:
    rows = "1,a,train,1,2\n1,b,train,1,2\n0,b,train,1,2\n0,a,train,1,2\n"
    assert SuccessMatrix.read(write(tmp_path / "m.csv", HEADER + rows)).train_tasks == ("b", "a")


def test_a_gap_in_stage_0_does_not_change_the_training_order() -> None:
    cells = [cell(0, "b", 1), cell(1, "a", 1), cell(1, "b", 1)]
    assert SuccessMatrix.from_cells(cells).train_tasks == ("a", "b")


def test_where_only_seen_tasks_were_evaluated_the_order_is_that_of_first_appearance() -> None:
    cells = [cell(1, "b", 1), cell(2, "c", 1), cell(3, "a", 1)]
    assert SuccessMatrix.from_cells(cells).train_tasks == ("b", "c", "a")


@pytest.mark.parametrize("name", ["matrix.csv", "matrix.jsonl"])
def test_written_files_read_back_the_same(tmp_path: Path, name: str) -> None:
    cells = [cell(0, "a, with comma", 2), cell(0, "x", 5, "heldout"), cell(1, "a, with comma", 9)]
    SuccessMatrix.from_cells(cells).write(tmp_path / name)
    assert list(SuccessMatrix.read(tmp_path / name).cells()) == cells


def test_other_columns_and_a_byte_order_mark_are_ignored_on_reading(tmp_path: Path) -> None:
    text = "\ufeffseed,task,stage,episodes,split,successes\n7,a,0,10,train,3\n"
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    assert list(SuccessMatrix.read(tmp_path / "m.csv").cells()) == [cell(0, "a", 3)]
    row = {"stage": 0, "task": "a", "split": "train", "successes": 3, "episodes": 10, "seed": 7}
    for name in ("m.jsonl", "m.json"):
        write(tmp_path / name, json.dumps(row) + "\n\n")
        assert list(SuccessMatrix.read(tmp_path / name).cells()) == [cell(0, "a", 3)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("first", ["", "{end}", "sep={delimiter}{end}"])
def test_what_spreadsheets_write_is_read_and_added_to(
    tmp_path: Path, encoding: str, end: str, delimiter: str, first: str
) -> None:
    lines = [HEADER.strip(), '0,"a, b; c",train,3,10', ",,,,", "", "0,x,heldout,5,10", " "]
    text = end.join(line.replace(",", delimiter) for line in lines)
    text = text.replace(f"a{delimiter} b", "a, b")
    path = tmp_path / "m.csv"
    start = first.format(end=end, delimiter=delimiter)
    path.write_bytes((start + text).encode(encoding))
    cells = [cell(0, "a, b; c", 3), cell(0, "x", 5, "heldout")]
    assert list(SuccessMatrix.read(path).cells()) == cells
    append_stage(path, [cell(1, "x", 6, "heldout")])
    assert list(SuccessMatrix.read(path).cells()) == [*cells, cell(1, "x", 6, "heldout")]


@pytest.mark.parametrize("split", ["heldout", "held_out", "held-out", "Held out", "HELDOUT"])
def test_held_out_tasks_may_be_spelled_as_others_do(tmp_path: Path, split: str) -> None:
    path = write(tmp_path / "m.csv", HEADER + f"0,a,Train,3,10\n0,x,{split},5,10\n")
    assert SuccessMatrix.read(path).heldout_tasks == ("x",)
    row = {"stage": 0, "task": "x", "split": split, "successes": 5, "episodes": 10}
    rows = [row | {"task": "a", "split": "train"}, row]
    write(tmp_path / "m.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert SuccessMatrix.read(tmp_path / "m.jsonl").heldout_tasks == ("x",)


def test_append_creates_the_file_and_keeps_what_others_wrote_in_it(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    append_stage(path, [cell(0, "a", 3), cell(0, "x", 1, "heldout")])
    matrix = append_stage(path, [cell(1, "a", 8)])
    assert path.read_text() == HEADER + "0,a,train,3,10\n0,x,heldout,1,10\n1,a,train,8,10\n"
    assert matrix.rates[1, 0] == 0.8
    foreign = write(
        tmp_path / "foreign.csv", "note,task,stage,split,episodes,successes\nhi,a,0,train,10,3"
    )
    append_stage(foreign, [cell(1, "a", 8)])
    assert foreign.read_text().splitlines()[1:] == ["hi,a,0,train,10,3", ",a,1,train,10,8"]
    lines = tmp_path / "matrix.jsonl"
    append_stage(lines, [cell(0, "a", 3)])
    append_stage(lines, [cell(1, "a", 8)])
    assert [json.loads(line)["successes"] for line in lines.read_text().splitlines()] == [3, 8]
    assert {file.name for file in tmp_path.iterdir()} == {path.name, foreign.name, lines.name}


def test_append_of_a_stage_that_is_there_already_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    append_stage(path, [cell(0, "a", 3)])
    before = path.read_text()
    with pytest.raises(
        ConfigError, match=r"matrix.csv:3: task 'a' was already evaluated in stage 0"
    ):
        append_stage(path, [cell(0, "a", 4)])
    assert path.read_text() == before


def test_write_refuses_to_overwrite(tmp_path: Path) -> None:
    matrix = SuccessMatrix.from_cells([cell(0, "a", 3)])
    matrix.write(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match=r"m\.csv: exists already"):
        matrix.write(tmp_path / "m.csv")


def test_more_stages_than_tasks_are_further_rounds_of_the_stream(tmp_path: Path) -> None:
    text = HEADER + "0,a,train,0,1\n0,b,train,0,1\n0,x,heldout,0,1\n3,a,train,1,1\n"
    matrix = SuccessMatrix.read(write(tmp_path / "m.csv", text), rounds=2)
    assert matrix.tasks == ("a", "b", "x")
    assert (matrix.num_train_tasks, matrix.num_stages) == (2, 4)  # two rounds, the last not over
    assert matrix.rates.shape == (5, 3)
    assert [matrix.trained_column(stage) for stage in range(1, 5)] == [0, 1, 0, 1]
    assert [cell.split for cell in matrix.cells()] == ["train", "train", "heldout", "train"]
    with pytest.raises(ConfigError, match=r"m\.csv:5: stage 3, but there are only 2 .*--rounds"):
        SuccessMatrix.read(tmp_path / "m.csv")


def test_a_matrix_of_two_rounds_grows_and_keeps_its_shape(tmp_path: Path) -> None:
    def cell(stage: int) -> Cell:
        return Cell(stage=stage, task="a", split="train", successes=1, episodes=2)

    first, *later = [
        append_stage(tmp_path / "m.csv", [cell(stage)], rounds=2) for stage in range(3)
    ]
    assert [matrix.num_stages for matrix in (first, *later)] == [2, 2, 2]
    again = SuccessMatrix.from_cells(later[-1].cells(), rounds=2)
    np.testing.assert_array_equal(again.rates, later[-1].rates)
    with pytest.raises(ConfigError, match="stage 3, but there are only 2"):
        append_stage(tmp_path / "m.csv", [cell(3)], rounds=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"m\.csv: no rows; expected the columns stage, task, split"),
        (HEADER, r"m\.csv: no rows"),
        ("\nstage;task\n0;a\n", r"m\.csv:2: no column 'split'; found stage, task, expected"),
        ("stage|task\n0|a\n", r"m\.csv:1: no column 'stage'; found stage\|task, expected"),
        (HEADER.replace(",", ";") + "\n0;a;train;3,5;10\n", r"csv:3: successes is '3,5'; it must"),
        ("stage,task,split,successes\n0,a,train,3\n", r"m\.csv:1: no column 'episodes'"),
        (HEADER + "0,a,train,3,10\n0,b,train,3\n", r"m\.csv:3: 4 values, expected 5"),
        (HEADER + "0,a,train,3,10,7\n", r"m\.csv:2: 6 values, expected 5"),
        ("stage,task,split,successes,episodes,task\n", r"m\.csv:1: 2 column 'task'"),
        (HEADER + "0,a,train,1,9999999999999\n", r"episodes is '9{13}'.* up to 1e\+12"),
        (HEADER + f"0,{'a' * 200_000},train,1,9\n", r"m\.csv:2: not CSV \(field larger"),
        (HEADER + "0,a,train,11,10\n", r"m\.csv:2: successes is 11; .* episodes = 10"),
        (HEADER + "0,a,train,-1,10\n", r"m\.csv:2: successes is -1; it must lie between 0"),
        (HEADER + "0,a,train,0,0\n", r"m\.csv:2: episodes is 0; .* has no row"),
        (HEADER + "-1,a,train,0,1\n", r"m\.csv:2: stage is -1; stages count from 0"),
        (HEADER + "0,a,train,0.7,1\n", r"m\.csv:2: successes is '0.7'; it must be a whole number"),
        (HEADER + "0,a,train,,1\n", r"m\.csv:2: successes is ''; it must be a whole number"),
        (HEADER + "0,a,held/out,0,1\n", r"m\.csv:2: unknown split 'held/out'; it is 'train'"),
        (HEADER + "0,a,test,0,1\n", r"m\.csv:2: unknown split 'test'; it is 'train'"),
        (HEADER + "0, ,train,0,1\n", r"m\.csv:2: task is ''; expected a name"),
        (HEADER + "0,a\0b,train,0,1\n", r"m\.csv: not a text .*line 2 has the character NUL"),
        (HEADER + "0,a,train,0,1\n0,a,train,1,1\n", r"m\.csv:3: task 'a' was already evaluated"),
        (HEADER + "0,a,train,0,1\n1,a,heldout,1,1\n", r"m\.csv:3: task 'a' is 'heldout' here"),
        (HEADER + "0,a,heldout,0,1\n", r"m\.csv: no row has the split 'train'"),
        (HEADER + "0,a,train,0,1\n2,a,train,1,1\n", r"m\.csv:3: stage 2, but there are only 1"),
    ],
)
def test_a_bad_csv_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SuccessMatrix.read(write(tmp_path / "m.csv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", r"m\.jsonl: no rows"),
        ("{nope\n", r"m\.jsonl:1: not JSON"),
        ("[" * 100_000 + "\n", r"m\.jsonl:1: not JSON: maximum recursion"),
        ("9" * 5_000 + "\n", r"m\.jsonl:1: not JSON: the number 9{20}"),
        (
            '{"stage": 0, "task": ["a"], "split": "train", "successes": 0, "episodes": 1}\n',
            r"m\.jsonl:1: task is \['a'\]; expected its name",
        ),
        ("\n[1, 2]\n", r"m\.jsonl:2: got '\[1, 2\]', expected a JSON object"),
        ('{"stage": 0}\n', r"m\.jsonl:1: no 'task'; expected the columns"),
        (
            '{"stage": 0, "task": "a", "split": "train", "successes": 0.5, "episodes": 1}\n',
            r"m\.jsonl:1: successes is 0.5; it must be a whole number",
        ),
        (
            '{"stage": 0, "task": "a", "split": "train", "successes": true, "episodes": 1}\n',
            r"m\.jsonl:1: successes is True; it must be a whole number",
        ),
    ],
)
def test_a_bad_json_lines_file_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SuccessMatrix.read(write(tmp_path / "m.jsonl", text))


def test_counts_of_other_programs_are_read(tmp_path: Path) -> None:
    text = "stage , task , split , successes , episodes\n0, a, train, 3.0, 10.0\n"
    path = write(tmp_path / "m.csv", text)
    assert list(SuccessMatrix.read(path).cells()) == [cell(0, "a", 3)]
    append_stage(path, [cell(1, "a", 4)])
    assert list(SuccessMatrix.read(path).cells()) == [cell(0, "a", 3), cell(1, "a", 4)]


def test_more_rounds_than_any_stream_has_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", HEADER + "0,a,train,3,10\n")
    with pytest.raises(ConfigError, match=r"10001 rounds of 1 training tasks .* at most 10000"):
        SuccessMatrix.read(path, rounds=10_001)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read .*; expected a long-format"):
        SuccessMatrix.read(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="is a folder, expected a file; expected a long-for"):
        SuccessMatrix.read(tmp_path)
    (tmp_path / "m.csv").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ConfigError, match=r"m\.csv: not a text file"):
        SuccessMatrix.read(tmp_path / "m.csv")
