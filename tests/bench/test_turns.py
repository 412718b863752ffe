from pathlib import Path

import pytest

from vla_crl.bench.turns import TurnProcess
from vla_crl.errors import ConfigError

CHILD = """
import contextlib, os, sys
from vla_crl.bench.turns import serve_turns

@contextlib.contextmanager
def prepared():
    print("a library's greeting")
    numbers = iter(sys.argv[1:])
    def turn():
        print("a library's remark")
        number = next(numbers)
        if number == "die":
            sys.exit("no such screen")
        return {"number": int(number), "backend": os.environ.get("BACKEND"),
                "gone": os.environ.get("GONE")}
    yield turn

serve_turns(prepared())
"""


def child(tmp_path: Path, *arguments: str) -> TurnProcess:
    (tmp_path / "child_of_test.py").write_text(CHILD)
    path = f"{tmp_path}:{Path(__file__).resolve().parents[2]}"
    variables = {"PYTHONPATH": path, "BACKEND": "egl", "GONE": ""}
    return TurnProcess("child_of_test", arguments, variables)


def test_a_child_answers_turn_by_turn_whatever_its_libraries_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GONE", "inherited")
    with child(tmp_path, "3", "4") as process:
        assert process.turn() == {"number": 3, "backend": "egl", "gone": None}
        assert process.turn()["number"] == 4


def test_a_child_that_dies_is_an_error_with_its_last_words(tmp_path: Path):
    with child(tmp_path, "3", "die") as process:
        process.turn()
        for _ in range(2):
            with pytest.raises(ConfigError, match="child_of_test 3 die: ended with code 1: no suc"):
                process.turn()
