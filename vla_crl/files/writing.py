"""How files are written: whole or not at all, also where the process is killed or power fails.

What is written has another name first, `.NAME.PID` in the same folder. It is brought to the disk
and then renamed, so whoever looks sees the old content or the new one.
"""

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from vla_crl.errors import naming

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"\.(.+)\.(\d+)")


def cache_folder(*parts: str) -> Path:
    """Return a folder of the user's cache: `$XDG_CACHE_HOME` or `~/.cache`, then `vla_crl`.

    It may be deleted at any time. Where there is none and none can be made it is a temporary one,
    which processes begun by this one use too and which goes with it.
    """
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(_usable(root), "vla_crl", *parts)


@cache
def _usable(root: str) -> str:
    """Return a cache's root if it holds a cache of ours or one can be made, else another."""
    try:
        if root.startswith("~"):  # nobody has said where home is
            raise FileNotFoundError(errno.ENOENT, "no home is known", root)
        Path(root, "vla_crl").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        temporary = tempfile.TemporaryDirectory(prefix="vla_crl-")
        _TEMPORARY_CACHES.append(temporary)
        os.environ["XDG_CACHE_HOME"] = temporary.name
        logger.warning(
            "%s/vla_crl: no cache can be made there (%s). What is compiled and baked lies in %s "
            "and is lost with this process; name a folder in the environment variable "
            "XDG_CACHE_HOME.", root, error.strerror, temporary.name,
        )  # fmt: skip
        return temporary.name
    return root


_TEMPORARY_CACHES: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends."""


def is_cache_temporary() -> bool:
    """Tell whether `cache_folder` found none to keep anything in."""
    return bool(_TEMPORARY_CACHES)


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
        with naming(path, temporary):
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
    try:
        with naming(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append(path: Path, text: str) -> None:
    """Add text in UTF-8 to the end of a file, which is begun if missing."""
    with naming(path), path.open("a", encoding="utf-8", newline="") as file:
        file.write(text)


def media_url(path: Path) -> str:
    """Return what ffmpeg takes for a file of this name, also where it looks like `tcp:/x.mp4`."""
    return f"file:{path}"


def keep(path: Path, save: Callable[[Path], object]) -> None:
    """Save the result of long work, elsewhere if it cannot be where it was to be.

    Args:
        path: Where.
        save: Writes a file, or a folder, of the name that it gets.

    Raises:
        OSError: It could not be; a note tells where the result is instead.
    """
    try:
        save(path)
    except OSError as error:
        refuge = Path(tempfile.mkdtemp(prefix="vla_crl-"), path.name)
        save(refuge)
        error.add_note(f"The result is kept in {refuge}")
        raise


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
