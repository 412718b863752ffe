"""CSV of other programs."""

from pathlib import Path

import pytest

from vla_crl.csv_text import CsvText, read_text
from vla_crl.errors import ConfigError


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


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("a;\u00e4\n".encode("latin-1"), "byte 3 is none of UTF-8"),
        ("a;b\n".encode("utf-16-le"), "it looks like UTF-16 without a byte order mark"),
        ("a;b\n".encode("utf-16-be"), "it looks like UTF-16 without a byte order mark"),
        (b"\xff\xfea", "byte 3 is none of UTF-16"),
        (b"PK\x03\x04\0\0", "it is a workbook"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_cause(
    tmp_path: Path, content: bytes, cause: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    message = rf"a\.csv: not a text file in UTF-8 \({cause}\); save it as 'CSV UTF-8'"
    with pytest.raises(ConfigError, match=message):
        read_text(tmp_path / "a.csv")
