"""CSV of other programs."""

from pathlib import Path

from vla_crl.files.csv_text import CsvText


def test_lines_keep_their_numbers_where_blank_ones_are_left_out(tmp_path: Path) -> None:
    table = CsvText("\n a ;b\n;\n\n1;2,5\n", tmp_path / "a.csv")
    assert table.delimiter == ";"
    assert table.columns == ["a", "b"]
    assert [*table.lines()] == [(2, ["a ", "b"]), (5, ["1", "2,5"])]


def test_a_line_that_names_the_delimiter_is_no_data(tmp_path: Path) -> None:
    table = CsvText("sep=|\na,b|c\n1|2\n", tmp_path / "a.csv")
    assert [*table.lines()] == [(2, ["a,b", "c"]), (3, ["1", "2"])]


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    assert CsvText("\n\n", tmp_path / "a.csv").columns == []
