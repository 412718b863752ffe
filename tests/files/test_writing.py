import errno
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from vla_crl.files import writing as files
from vla_crl.files.writing import (
    cache_folder,
    intended_name,
    keep,
    media_url,
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


def test_an_error_of_the_disk_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path;"
        "from vla_crl.files import writing as files;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "path = Path(sys.argv[1]);"
        "\ntry: getattr(files, sys.argv[2])(path, 'x' * 5000)"
        "\nexcept OSError as error: print(error.filename, error.strerror)"
    )
    for write in ("write_atomically", "append"):
        path = tmp_path / write
        command = [sys.executable, "-c", program, str(path), write]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{path} File too large\n"
    assert not (tmp_path / "write_atomically").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["append"]


def test_a_folder_that_cannot_be_made_is_named_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "folder"
    with pytest.raises(NotADirectoryError) as caught, new_folder(path):
        pass
    assert caught.value.filename == str(path)


def test_a_result_that_cannot_be_saved_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    missing = tmp_path / "missing" / "result.json"
    with pytest.raises(FileNotFoundError) as caught:
        keep(missing, lambda path: path.write_text("[1]"))
    (refuge,) = tmp_path.glob("vla_crl-*/result.json")
    assert refuge.read_text() == "[1]"
    assert caught.value.__notes__ == [f"The result is kept in {refuge}"]
    keep(tmp_path / "result.json", lambda path: path.write_text("[2]"))
    assert (tmp_path / "result.json").read_text() == "[2]"


@pytest.mark.parametrize("home", ["", "/proc/nobody"], ids=["unknown", "cannot_be_made"])
def test_without_a_place_for_a_cache_it_lasts_as_long_as_the_process(
    tmp_path: Path, home: str
) -> None:
    program = (
        "import os, subprocess, sys; from vla_crl.files.writing import *;"
        "folder = cache_folder('libero'); folder.mkdir(parents=True);"
        "assert is_cache_temporary();"
        "child = 'from vla_crl.files.writing import *;print(cache_folder(), is_cache_temporary())';"
        "subprocess.run([sys.executable, '-c', child], check=True); print(folder)"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "HOME")
    }
    if home:
        environment["HOME"] = home
    else:  # nor does the list of users know one
        program = "import os; os.path.expanduser = lambda path: path;" + program
    environment["PYTHONPATH"] = str(Path(files.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    child, folder = done.stdout.splitlines()
    assert child == f"{Path(folder).parent} False"
    assert not Path(folder).exists()
    assert "no cache can be made there" in done.stderr
    assert "XDG_CACHE_HOME" in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_cache_that_is_there_is_used_though_it_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vla_crl").mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("libero") == tmp_path / "vla_crl" / "libero"
    assert not files.is_cache_temporary()


def test_a_file_that_looks_like_an_address_is_a_file() -> None:
    assert media_url(Path("tcp:/x.mp4")) == "file:tcp:/x.mp4"
