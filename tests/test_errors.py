import errno
from pathlib import Path

import pytest

from vla_crl.errors import (
    USER_ERRORS,
    CheckpointError,
    ConfigError,
    ForeignError,
    SpecError,
    UnfinishedError,
    describe,
    install_extra,
    naming,
    unknown_name,
)


def test_an_unknown_name_names_the_nearest_one() -> None:
    error = unknown_name("run.toml", "task", "red_cub", ["red_cube", "blue_ball"])
    assert str(error) == (
        "run.toml: unknown task 'red_cub'. Did you mean 'red_cube'? Known: blue_ball, red_cube."
    )
    assert isinstance(error, ConfigError)


def test_extras_are_installed_in_a_clone() -> None:
    told = "pip install --editable '.[libero]' in the project's folder"
    assert install_extra("libero") == told


def test_a_name_like_no_other_gets_only_the_list() -> None:
    error = unknown_name("run.toml", "task", "xyz", ["red_cube"])
    assert str(error) == "run.toml: unknown task 'xyz'. Known: red_cube."


def test_an_empty_list_says_none() -> None:
    assert str(unknown_name("a", "task", "x", [])) == "a: unknown task 'x'. Known: none."


def test_user_errors_are_built_in_errors_too() -> None:
    ours = {ConfigError, SpecError, CheckpointError, ForeignError, UnfinishedError}
    assert set(USER_ERRORS) == {*ours, FloatingPointError}
    built_in = (ValueError, ArithmeticError, RuntimeError)
    assert all(issubclass(error, built_in) for error in USER_ERRORS)


def test_an_error_of_the_operating_system_is_told_by_path_and_reason(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "missing").open()
    assert describe(caught.value) == f"{tmp_path / 'missing'}: No such file or directory"


def test_notes_follow_the_message() -> None:
    error = ConfigError("bad")
    error.add_note("go on with: make")
    error.add_note("kept in /tmp")
    assert describe(error) == "bad. go on with: make. kept in /tmp"


def test_an_error_that_tells_no_path_gets_that_of_the_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, naming(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert describe(caught.value) == f"{tmp_path / 'a.json'}: No space left on device"


def test_a_temporary_name_is_not_told_and_another_path_stays(tmp_path: Path) -> None:
    path, temporary = tmp_path / "a.json", tmp_path / ".a.json.1"
    with pytest.raises(FileNotFoundError) as caught, naming(path, temporary):
        temporary.read_text()
    assert describe(caught.value) == f"{path}: No such file or directory"
    with pytest.raises(FileNotFoundError) as caught, naming(path, temporary):
        (tmp_path / "other").read_text()
    assert describe(caught.value) == f"{tmp_path / 'other'}: No such file or directory"


def test_characters_that_command_the_terminal_are_told_by_their_numbers() -> None:
    assert describe(ConfigError("a\x1b[31m\r\u2028b\nc")) == "a\\x1b[31m\\r\\u2028b c"


def test_a_word_without_end_is_not_told_whole() -> None:
    told = describe(ConfigError(f"unknown policy '{'a' * 5000}'. Known: tiny"))
    assert told == f"unknown policy '{'a' * 199}...{'a' * 48}'. Known: tiny"
