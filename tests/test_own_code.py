import json
from pathlib import Path

import numpy as np
import pytest

import vla_crl
from vla_crl.cli import main as cli
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.own_code import defined_at, in_a_line, is_own, place_of


def caught(program: str, file: Path) -> BaseException:
    """Run the text of a file and return what it raises."""
    file.write_text(program)
    with pytest.raises(Exception) as error:  # noqa: PT011 - any
        exec(compile(program, str(file), "exec"), {"np": np, "ConfigError": ConfigError})
    return error.value


def test_own_is_what_is_neither_ours_nor_installed() -> None:
    assert is_own(__file__)
    assert not is_own(vla_crl.__file__)
    assert not is_own(json.__file__)
    assert not is_own(np.__file__)
    assert not is_own("<string>")


def test_an_error_in_own_code_is_told_with_the_last_place_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    error = caught("x = 1\nnp.zeros((2, 3)) @ np.zeros((2, 3))\n", file)
    assert place_of(error) == f"{file}:2"
    line = in_a_line(error)
    assert line is not None
    assert line.startswith(f"{file}:2: ValueError: matmul: ")
    assert "\n" not in line


def test_a_function_of_own_code_is_told_with_its_first_line() -> None:
    function = test_own_is_what_is_neither_ours_nor_installed
    assert defined_at(function) == f"{__file__}:{function.__code__.co_firstlineno}"
    assert defined_at(is_own) is None
    assert defined_at(len) is None


def test_a_fault_that_is_ours_is_not_told_in_a_line() -> None:
    error = TypeError("takes 1 argument")
    assert place_of(error) is None
    assert in_a_line(error) is None


def test_an_error_that_says_where_it_is_keeps_its_words(tmp_path: Path) -> None:
    assert in_a_line(caught("raise ConfigError('x is 1')\n", tmp_path / "a.py")) == "x is 1"
    error = OSError(2, "No such file", "a.txt")
    assert in_a_line(error) == "a.txt: No such file"
    assert in_a_line(CheckpointError("cut off")) == "cut off"
    assert in_a_line(MemoryError("4 TiB")) == "4 TiB"


def test_what_own_code_makes_of_our_functions_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    program = "from vla_crl.errors import SpecError\nraise SpecError('shape [3]')\n"
    error = caught(program, file)
    assert isinstance(error, SpecError)
    assert in_a_line(error) == f"{file}:2: SpecError: shape [3]"


def test_the_command_line_tells_a_failure_in_own_code_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("\n\ndef fail(options):\n    return {}['x']\n")
    functions: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), "exec"), functions)
    monkeypatch.setattr("vla_crl.cli.commands.metrics", functions["fail"])
    assert cli.main(["metrics", "a.csv"]) == 2
    assert capsys.readouterr().err == f"vla-crl: error: {file}:4: KeyError: 'x'\n"


def test_the_command_line_does_not_hide_a_fault_that_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vla_crl.cli.commands.metrics", len)
    with pytest.raises(TypeError):
        cli.main(["metrics", "a.csv"])
