import errno
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from vla_crl.files import (
    intended_name,
    new_folder,
    remove_leftovers,
    replacing,
    temporary_path,
    write_atomically,
)

DEAD = 99_999_999
"""No process has so great a number."""


def test_a_file_is_replaced_by_the_whole_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary == temporary_path(path) == tmp_path / f".a.json.{os.getpid()}"
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_what_is_written_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def name_of(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.removesuffix(f".{os.getpid()}")

    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: happened.append(name_of(descriptor)))
    monkeypatch.setattr(
        os, "replace", lambda old, new: (happened.append(f"is {Path(new).name}"), replace(old, new))
    )
    write_atomically(tmp_path / "a", "text")
    assert happened == [".a", "is a", tmp_path.name]
    happened.clear()
    with new_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("text")
    assert happened == ["c", ".b", "is b", tmp_path.name]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_only_a_file_system_without_such_a_thing_may_refuse_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    refused = pytest.raises(OSError, match="no") if number == errno.EIO else nullcontext()
    with refused:
        write_atomically(tmp_path / "a", "text")
    assert (tmp_path / "a").exists() == (number == errno.EINVAL)


def test_a_folder_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    path = tmp_path / "above" / "state"
    with new_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    assert (path / "a").read_text() == "1"
    assert [*path.parent.iterdir()] == [path]


def test_of_a_folder_that_was_not_finished_nothing_is_left(tmp_path: Path) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "state") as folder:
            (folder / "a").write_text("1")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_a_dead_process_of_our_number_began_is_begun_anew(tmp_path: Path) -> None:
    left = temporary_path(tmp_path / "state")
    left.mkdir()
    (left / "old").write_text("1")
    with new_folder(tmp_path / "state") as folder:
        assert [*folder.iterdir()] == []


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        gone = [f".a.csv.{DEAD}", f".state.{DEAD}/inner/.b.{DEAD}", f"below/.c.{os.getpid()}"]
        kept = [f".a.csv.{living.pid}", "a.csv", ".lock", f"a.csv.{DEAD}", "below/.notes"]
        for name in gone + kept:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("1")
        remove_leftovers(tmp_path)
        files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
        assert files == set(kept)
        assert not (tmp_path / f".state.{DEAD}").exists()
        living.communicate(b"\n")


def test_what_a_process_of_somebody_else_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    (tmp_path / f".a.{DEAD}").write_text("1")
    remove_leftovers(tmp_path)
    assert (tmp_path / f".a.{DEAD}").exists()


def test_the_intended_name_is_that_behind_the_temporary_one() -> None:
    assert intended_name(Path(f"run/.config.json.{DEAD}")) == "config.json"
    assert intended_name(Path("run/config.json")) == "config.json"
    assert intended_name(Path("run/.lock")) == ".lock"
