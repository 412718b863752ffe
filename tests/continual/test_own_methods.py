import subprocess
import sys
from pathlib import Path

import pytest

from vla_crl.continual.known_methods import METHODS as KNOWN
from vla_crl.continual.known_methods import find_method, list_methods
from vla_crl.errors import ConfigError

METHODS = '''
import os
import vla_crl.continual.method as base
from vla_crl.continual.method import ContinualMethod as Base
from vla_crl.continual.methods.sequential import SequentialFineTuning

open(os.environ["WITNESS"], "w").close()


class Anchor(Base):
    """Hold the weights.

    More of it.
    """


class Firmer(Anchor): ...
class Dotted(base.ContinualMethod): ...
class Tuned(SequentialFineTuning): ...
class _Hidden(Anchor): ...
class Network: ...
class NetworkOfOurs(Network, dict): ...
Anchors = 3
'''


@pytest.fixture
def own(own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with methods of one's own, which tell when they are imported."""
    (own_folder / "my_methods.py").write_text(METHODS)
    monkeypatch.setenv("WITNESS", str(tmp_path / "imported"))
    return own_folder


def test_methods_of_ones_own_are_listed_without_running_them(own: Path, tmp_path: Path) -> None:
    (own / "pack/deep").mkdir(parents=True)
    for file in ("pack/__init__.py", "pack/deep/__init__.py"):
        (own / file).touch()
    inner = "from my_methods import Anchor as Held\nclass Inner(Held[int]): ...\n"
    (own / "pack/deep/more.py").write_text(inner)
    (own / "loose").mkdir()
    (own / "loose/other.py").write_text(METHODS)  # in no package: nothing could import it
    rows = {row["name"]: row for row in list_methods()}
    assert [*rows] == [
        *sorted(KNOWN),
        "my_methods:Anchor",
        "my_methods:Dotted",
        "my_methods:Firmer",
        "my_methods:Tuned",
        "pack.deep.more:Inner",
    ]
    assert rows["my_methods:Anchor"]["description"] == "Hold the weights."
    assert rows["pack.deep.more:Inner"]["file"] == str(own / "pack/deep/more.py")
    assert not (tmp_path / "imported").exists()
    for name in rows:
        if name.startswith("my_methods"):
            assert find_method(name).__name__ == name.partition(":")[2]
    assert (tmp_path / "imported").exists()


def test_a_file_that_is_not_python_does_not_hide_the_others(own: Path) -> None:
    (own / "broken.py").write_text("class A(:\n")
    (own / "binary.py").write_bytes(b"x = '\xff\x00'\n")
    rows = {row["name"]: row["description"] for row in list_methods()}
    assert rows["broken"] == f"cannot be read: {own}/broken.py:1: SyntaxError: invalid syntax"
    assert rows["binary"].startswith(f"cannot be read: {own}/binary.py")
    assert "my_methods:Anchor" in rows


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Anchor", "unknown method 'Anchor'. Did you mean 'my_methods:Anchor'"),
        ("my_methods:Ancor", "unknown name in my_methods 'Ancor'. Did you mean 'Anchor'"),
        ("my_methods:Anchors", "method 'my_methods:Anchors': is not a subclass of ContinualMethod"),
        ("my_methods:Network", "method 'my_methods:Network': is not a subclass of ContinualMethod"),
        ("my_methods:Base", "method 'my_methods:Base': is not a subclass of ContinualMethod"),
        ("my_method:Anchor", "there is no module 'my_method'; .* Did you mean 'my_methods'?"),
    ],
)
def test_a_method_that_is_none_is_told(own: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_method(name)


@pytest.mark.parametrize("name", ["my_methods:Netwrk", "my_methods:os", "Network", "broken"])
def test_what_is_not_a_method_is_never_suggested_as_one(own: Path, name: str) -> None:
    (own / "broken.py").write_text("class A(:\n")
    with pytest.raises(ConfigError) as error:
        find_method(name)
    known = str(error.value).partition(".")[2]
    for word in ("Network", "os", "Base", "ContinualMethod", "base", "Anchors", "broken"):
        assert f" {word}" not in known
        assert f"'{word}'" not in known


def test_a_method_in_a_folder_of_ones_own_needs_no_pythonpath(own: Path) -> None:
    module = "vla_crl.continual.known_methods"
    find = f"from {module} import find_method as f; print(f('my_methods:Anchor'))"
    command = [sys.executable, "-P", "-c", find]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "<class 'my_methods.Anchor'>\n"
