"""Changes of what a file says, of its bytes, or of what lies in its place; at random."""

import copy
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**5, 10**9, 2**63, 10**400, -(10**18)),
    *(1.5, 0.0, -0.0, 1e-6, 1e38, -1e300, math.nan, math.inf, -math.inf),
    *(
        "",
        "None",
        "full",
        "a\nb",
        "\x1b[2J",
        "\u2028",
        "../..",
        "/dev/zero",
        "a" * 10_000,
        "[/red]",
    ),
    *("\U0001f916", "$x^2$", [], {}, [[]], [None], [0, 1], ["a"], {"a": 1}, [1e9] * 3),
    *(["a"] * 200, [math.nan] * 2, {"": {}}, {"format": 3}, "\ud800", "a\0b", "os:system", "a:b"),
)
DIGITS = b"9" * 5000
STARTS = (b"\xef\xbb\xbf", b"PK\x03\x04", b"\x1f\x8b", b"{", b"[")
PIECES = (b"\0", b"\xff", b"\n", b'"', b"{", b",", b"\xe2\x80\xa8", b"-", b"#", DIGITS)
WHOLES = (
    b"",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"a = " + b"[" * 100_000,
    DIGITS,
    b"a = " + DIGITS,
)


def change(rng: Random, path: Path) -> None:
    """Change a file."""
    kind, content = rng.random(), path.read_bytes()
    if kind < 0.1:
        _change_place(rng, path)
    elif kind < 0.35:
        path.write_bytes(_changed_bytes(rng, content))
    else:
        read, write = FORMATS[path.suffix]
        path.write_bytes(write(_changed_data(rng, read(content))))


def change_arrays(rng: Random, path: Path) -> None:
    """Change an npz file, mostly one of its arrays."""
    if rng.random() < 0.4:
        path.write_bytes(_changed_bytes(rng, path.read_bytes()))
        return
    with np.load(path) as file:
        arrays = dict(file)
    name = rng.choice([*arrays])
    old = arrays.pop(name)
    new = (
        *(old[..., None], old.astype(np.str_), np.array(0), np.zeros((0, 0)), np.zeros(2**20)),
        *(np.full(old.shape, np.nan), np.full(old.shape, 10**9), np.array("[" * 10_000), None),
    )
    if (array := rng.choice(new)) is not None:
        arrays[name] = array
    np.savez_compressed(path, **arrays)


def change_tensors(rng: Random, path: Path) -> None:
    """Change a safetensors file, mostly its header."""
    content = path.read_bytes()
    if rng.random() < 0.4:
        path.write_bytes(_changed_bytes(rng, content))
        return
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(_changed_data(rng, json.loads(content[8 : 8 + length]))).encode()
    told = len(header) if rng.random() < 0.8 else rng.choice((0, 7, 2**40, 2**63))
    path.write_bytes(told.to_bytes(8, "little") + header + content[8 + length :])


def _change_place(rng: Random, path: Path) -> None:
    path.unlink()
    kind = rng.choice(("nothing", "folder", "pipe", "device", "loop", "huge"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "loop"):
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**41)


def _changed_bytes(rng: Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    end = min(len(content), at + rng.randrange(1, 30))
    return rng.choice(
        (
            *(content[:at], content[at:], content + content, content[:at] + content[end:]),
            *(content[:at] + rng.randbytes(end - at) + content[end:], rng.randbytes(100)),
            *(content[:at] + rng.choice(PIECES) + content[at:], rng.choice(STARTS) + content),
            *(content.decode("latin-1").encode("utf-16"), rng.choice(WHOLES)),
        )
    )


def _changed_data(rng: Random, data: Any) -> Any:
    """Return plain data with one place in it changed."""
    data = copy.deepcopy(data)
    places = [*_places(data)]
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    kind = rng.random()
    if isinstance(holder, dict) and kind < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and kind < 0.25:
        holder[rng.choice(("x", "", "a\nb", key[:-1], "\0"))] = holder.pop(key)
    elif isinstance(holder, list) and kind < 0.25:
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in [*(data.items() if isinstance(data, dict) else enumerate(data))]:
        yield data, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int) and abs(value) > 10**300:
        return hex(value)
    text = json.dumps("None" if value is None else value)
    return text.lower().replace("infinity", "inf") if isinstance(value, float) else text


def _write_toml(data: Any) -> bytes:
    return "".join(f"{json.dumps(k)} = {_toml(v)}\n" for k, v in dict(data).items()).encode()


def _write_table(rows: Any) -> bytes:
    lines = (",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


FORMATS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    ".toml": (lambda content: tomllib.loads(content.decode()), _write_toml),
    ".json": (json.loads, lambda data: json.dumps(data).encode()),
    ".jsonl": (
        lambda content: [json.loads(line) for line in content.splitlines()],
        lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ),
    ".csv": (
        lambda content: [line.split(",") for line in content.decode().splitlines()],
        _write_table,
    ),
}
"""How data is read from good files, and written when it is changed, by the file's ending."""
