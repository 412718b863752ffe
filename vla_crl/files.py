"""How files are written: whole or not at all, also where the process is killed or power fails.

What is written has another name first, `.NAME.PID` in the same folder. It is brought to the disk
and then renamed, so whoever looks sees the old content or the new one.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\.(.+)\.(\d+)")


def cache_folder(*parts: str) -> Path:
    """Return a folder of the user's cache: `$XDG_CACHE_HOME` or `~/.cache`, then `vla_crl`.

    It may be deleted at any time.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "vla_crl", *parts)


def temporary_path(path: Path) -> Path:
    """Return the name that a file or folder has until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def intended_name(path: Path) -> str:
    """Return the name that a file was to get: of a temporary one that behind it, else its own."""
    match = _TEMPORARY.fullmatch(path.name)
    return match[1] if match else path.name


def put_in_place(temporary: Path, path: Path) -> None:
    """Bring a file, or a folder with its files, to the disk and give it its name.

    Args:
        temporary: What `temporary_path` returned, written and closed.
        path: A file there is replaced, a folder must not be there.
    """
    for file in temporary.rglob("*") if temporary.is_dir() else ():
        sync(file)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the disk has what was written to a file, or which names a folder holds.

    Some file systems, of networks mostly, know no such thing for folders; there nothing is done.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block a name to write a file to, which gets the name `path` when the block ends.

    After an error the old file is there, and nothing else.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give the block a folder to write files to, which gets the name `path` when the block ends.

    After an error there is none. Folders above it are made.
    """
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with our number
    temporary.mkdir(parents=True)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in a folder and those below it.

    What a living process writes stays; our own number is that of a dead one too, as in containers,
    so call this before anything is written.
    """
    for path in [*folder.rglob(".*")]:
        match = _TEMPORARY.fullmatch(path.name)
        if not match or _lives(int(match[2])):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have stood in a folder that was removed


def _lives(process: int) -> bool:
    """Tell whether there is another process of this number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True
