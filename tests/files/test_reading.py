"""Files that are none, are too large, or say what nothing can be made of."""

import io
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_crl import hardware
from vla_crl.errors import ConfigError
from vla_crl.files.reading import (
    MAX_DEPTH,
    check_plain,
    parse_json,
    parse_lines,
    parse_toml,
    read_arrays,
    read_object,
    read_text,
    require_file,
    shown,
)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"cannot be read \(No such file or directory\)"),
        (os.mkdir, "is a folder, expected a file"),
        (os.mkfifo, "is a pipe, expected a file"),
        (make_socket, "is a socket, expected a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a file"),
        (lambda path: path.symlink_to(path), r"cannot be read \(Too many levels of symbolic"),
    ],
)
@pytest.mark.parametrize("read", [read_text, read_object, read_arrays])
def test_what_is_no_file_is_told_by_what_it_is(
    tmp_path: Path, monkeypatch, make: Callable[[Path], None], message: str, read
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("there"))
    with pytest.raises(ConfigError, match=f"^there: {message}"):
        read(Path("there"))


def test_a_character_that_no_path_can_have_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot be read .*null"):
        require_file(Path("a\0b"))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(ConfigError, match=r"a.json: has 1,048,576 MiB, expected at most 16$"):
        read_text(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("a;\u00e4\n".encode("latin-1"), "byte 3 is none of UTF-8"),
        ("a;b\n".encode("utf-16-le"), "it looks like UTF-16 without a byte order mark"),
        ("a;b\n".encode("utf-16-be"), "it looks like UTF-16 without a byte order mark"),
        (b"\xff\xfea", "byte 3 is none of UTF-16"),
        (b"PK\x03\x04\0\0", "it is a workbook or an archive"),
        (b"one\nt\0o\n", "line 2 has the character NUL"),
    ],
)
def test_what_is_no_text_is_told_with_its_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    message = rf"a\.csv: not a text file in UTF-8 \({cause}\); save it as such, spreadsheets call"
    with pytest.raises(ConfigError, match=message):
        read_text(tmp_path / "a.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_in_the_encodings_that_editors_write(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.toml").write_text("name = 'ä'\n", encoding=encoding)
    assert parse_toml(read_text(tmp_path / "a.toml"), "a.toml") == {"name": "ä"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^f: not JSON: Expecting value"),
        ("[" * 100_000, "^f: not JSON: maximum recursion depth"),
        ("[" * 100 + "]" * 100, f"^f: nested more than {MAX_DEPTH} deep"),
        ("1" * 5000, r"^f: not JSON: the number 1{20}\.\.\. has more than 64 bits"),
        (str(2**63), "^f: not JSON: the number 9223372036854775808... has more than 64 bits"),
        ('{"b": {"a": 1, "a": 2}}', "^f: not JSON: the key 'a' is there more than once; remove"),
    ],
)
def test_json_that_nothing_can_be_made_of_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_json(text, "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "^f: not a TOML file: "),
        ("a = " + "[" * 100 + "]" * 100, f"^f: nested more than {MAX_DEPTH} deep"),
        ("a = " + "1" * 5000, "^f: not a TOML file: Exceeds the limit"),
        ("a = 0x" + "f" * 5000, "^f: a = <int too long to be shown>, expected a number of 64 bits"),
        ("a = nan", "^f: a = nan, expected a finite number"),
        ("a = [1, {b = -inf}]", r"^f: a\[1\].b = -inf, expected a finite number"),
        (
            "a = 1979-05-27",
            r"^f: a = datetime.date\(1979, 5, 27\) \(date\), expected a number",
        ),
        ('a = "\\u0000"', r"^f: a = '\\x00', expected a text without NUL"),
        ('"\\u0000" = 1', "^f: a key = '.x00', expected a text without NUL"),
    ],
)
def test_toml_that_says_what_no_setting_can_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_toml(text, "f")


def test_a_text_of_half_a_character_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^f: a = '\\ud800', expected a text"):
        check_plain(parse_json(r'"\ud800"', "f"), "f", "a")


def test_lines_of_json_end_at_line_feeds_only() -> None:
    text = '{"a": "x\u2028y"}\n\n{"a": NaN}\n'
    (first, one), (second, two) = parse_lines(text, Path("f"))
    assert (first, one, second) == ("f:1", {"a": "x\u2028y"}, "f:3")
    assert np.isnan(two["a"])
    with pytest.raises(ConfigError, match=r"^f:2: got '\[\]', expected a JSON object"):
        list(parse_lines("{}\n[]\n", Path("f")))


def test_a_value_is_shown_in_a_line_of_bearable_length() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown([0] * 1000) == "[" + "0, " * 39 + "0,..."
    assert shown(10**5000) == "<int too long to be shown>"


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle:])


@pytest.mark.parametrize(
    "spoil",
    [damaged, lambda content: content[:50], lambda content: b"", lambda content: b"\x93NUMPY"],
)
def test_damaged_arrays_are_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(10_000))
    (tmp_path / "a.npz").write_bytes(spoil(buffer.getvalue()))
    with pytest.raises(ConfigError, match="a.npz: not a whole npz file"):
        read_arrays(tmp_path / "a.npz")


def test_arrays_that_the_memory_cannot_hold_are_not_unpacked(tmp_path: Path, monkeypatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20))
    assert (tmp_path / "a.npz").stat().st_size < 2**15
    monkeypatch.setattr(hardware, "available_memory", lambda device="cpu": 2**20)
    with pytest.raises(ConfigError, match="its arrays: would take 0.0 GiB, but device 'cpu' has"):
        read_arrays(tmp_path / "a.npz")


def test_arrays_that_claim_more_than_they_have_are_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    with pytest.raises(ConfigError, match="a.npz: not a whole npz file"):
        read_arrays(tmp_path / "a.npz")
