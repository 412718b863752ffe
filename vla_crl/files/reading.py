"""How files are read: regular ones of a bearable size, as text, JSON, TOML or arrays.

What lies in the place of a file, such as a folder, a pipe or a device without an end, is told of by
what it is. Numbers beyond 64 bits, texts that are none and nestings without end stop here.
"""

import codecs
import json
import math
import stat
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vla_crl.errors import ConfigError
from vla_crl.hardware import require_memory

if TYPE_CHECKING:
    import numpy as np

MAX_RECORD_BYTES = 2**24
"""Of a file that says something once: settings, a record."""
MAX_TABLE_BYTES = 2**28
"""Of a file with a line for each of many things."""
MAX_DEPTH = 64
"""Lists and tables inside one another."""
MAX_SHOWN = 120
"""Characters of a value that an error repeats."""
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
}  # fmt: skip


def shown(value: object) -> str:
    """Return a value as an error repeats it: in one line that is not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; what holds itself
        return f"<{type(value).__name__} too long to be shown>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def require_file(path: Path, max_bytes: float = math.inf) -> None:
    """Check that there is a file to be read, which then neither blocks nor goes on for ever.

    Args:
        path: Of the file.
        max_bytes: How large it may be.

    Raises:
        ConfigError: It is missing, or something else, or too large.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a character that no path can have
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise ConfigError(f"{path}: is {_KINDS.get(kind, 'no file')}, expected a file")
    if found.st_size > max_bytes:
        raise ConfigError(
            f"{path}: has {found.st_size / 2**20:,.0f} MiB, expected at most "
            f"{max_bytes / 2**20:,.0f}"
        )


def read_text(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        ConfigError: It cannot be read, is too large, or in neither; says what it looks like.
    """
    require_file(path, max_bytes)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        cause = f"byte {error.start + 1} is none of {'UTF-16' if utf_16 else 'UTF-8'}"
    else:
        if "\0" not in text:
            return text
        cause = f"line {text.count(chr(10), 0, text.index(chr(0))) + 1} has the character NUL"
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        cause = "it is a workbook or an archive"
    elif b"\0" in content[:2]:
        cause = "it looks like UTF-16 without a byte order mark"
    raise ConfigError(
        f"{path}: not a text file in UTF-8 ({cause}); save it as such, spreadsheets call it 'CSV "
        "UTF-8'"
    )


def parse_json(text: str, where: str) -> Any:
    """Return what a JSON text says.

    NaN and infinities, which JSON has not but many programs write, are taken; who needs a number
    declares one, see `vla_crl.config`.

    Args:
        text: All of it.
        where: File and line, the beginning of the error message.

    Raises:
        ConfigError: It is not JSON.
    """
    parse = partial(json.loads, parse_int=_whole_number, object_pairs_hook=_table)
    return _parsed(lambda: parse(text), where, "JSON")


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Return a JSON text that says an object.

    Raises:
        ConfigError: It is not JSON, or something else.
    """
    record = parse_json(text, where)
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: got {shown(text)}, expected a JSON object")
    return cast(dict[str, Any], record)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ConfigError: It cannot be read, or has other content.
    """
    return parse_object(read_text(path), str(path))


def parse_lines(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and content of every line with a JSON object; those that are blank are left out.

    Args:
        text: A file's. Lines end where JSON's do: not at the line ends that Unicode adds.
        path: The file's.

    Raises:
        ConfigError: A line is none; names it.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", parse_object(line, f"{path}:{number}")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return what a TOML text says.

    Raises:
        ConfigError: It is not TOML, or says what no setting can be: a date, a number without end.
    """
    content = _parsed(lambda: tomllib.loads(text), where, "a TOML file")
    for key, value in content.items():
        check_plain(key, where, "a key")
        check_plain(value, where, key)
    return content


def check_plain(value: object, where: str, key: str) -> None:
    """Check that a value is made of lists and tables of what settings are made of.

    Args:
        value: As a file or a flag gives it.
        where: The beginning of the error message.
        key: How the message calls the value.

    Raises:
        ConfigError: A date, a number that is not finite or beyond 64 bits, or a text that is none.
    """
    if isinstance(value, Mapping):
        for name, item in cast(Mapping[str, object], value).items():
            check_plain(name, where, f"a key of {key}")
            check_plain(item, where, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast(list[object], value)):
            check_plain(item, where, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} = {value}, expected a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{where}: {key} = {shown(value)}, expected a number of 64 bits")
    elif isinstance(value, str) and not is_text(value):
        raise ConfigError(f"{where}: {key} = {shown(value)}, expected a text without NUL")
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise ConfigError(
            f"{where}: {key} = {shown(value)} ({type(value).__name__}), expected a number, a text, "
            "true, false, or lists and tables of them"
        )


def is_text(value: str) -> bool:
    """Tell whether a string can be written to a file and be a part of a path."""
    try:
        value.encode("utf-8")  # not halves of a character, as JSON and odd paths may have
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def read_arrays(path: Path) -> dict[str, "np.ndarray"]:
    """Read an npz file without pickled objects.

    Raises:
        ConfigError: It cannot be read, is damaged, or its arrays are larger than the memory.
    """
    import numpy as np

    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        require_memory(unpacked, f"{path}: its arrays")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except ConfigError:
        raise
    except (
        *(OSError, EOFError, KeyError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error),
        *(NotImplementedError, RuntimeError),  # compressed in an unknown way, encrypted
    ) as error:
        raise ConfigError(f"{path}: not a whole npz file ({error})") from error


def _parsed(parse: Callable[[], Any], where: str, kind: str) -> Any:
    try:
        content = parse()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not {kind}: {error}") from error
    if _is_deeper(content, MAX_DEPTH):
        raise ConfigError(f"{where}: nested more than {MAX_DEPTH} deep")
    return content


def _is_deeper(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        value = list(cast(dict[str, object], value).values())
    if not isinstance(value, list):
        return False
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in cast(list[object], value))


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError(f"the number {digits[:20]}... has more than 64 bits")
    return number


def _table(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object if it says everything once; of two values none would be the right."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(repeated)} is there more than once; remove one of them")
    return table
