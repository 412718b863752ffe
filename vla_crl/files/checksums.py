"""Checksums of files, kept beside them, so that damage is found before it does harm.

`SHA256SUMS` in a folder is what `sha256sum` writes, and `sha256sum --check` reads it too.
"""

import hashlib
import logging
from pathlib import Path

from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.reading import read_text, require_file
from vla_crl.files.writing import write_atomically

logger = logging.getLogger(__name__)
SUMS_FILE = "SHA256SUMS"


def write_sums(folder: Path, *names: str) -> None:
    """Write down what files of a folder are now; what is written of others there stays."""
    sums = _read_sums(folder) if (folder / SUMS_FILE).exists() else {}
    sums |= {name: _sha256(folder / name) for name in names}
    lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items())]
    write_atomically(folder / SUMS_FILE, "".join(lines))


def find_damage(folder: Path, *names: str) -> str | None:
    """Say what is wrong with files of a folder, None if nothing is.

    Args:
        folder: With a `SHA256SUMS`.
        names: Of the files; one that ends in "/" stands for all below it that are written down.
    """
    try:
        expected = _read_sums(folder)
        below = tuple(name for name in names if name.endswith("/"))
        wanted = [name for name in names if name not in below]
        for name in [*wanted, *(known for known in expected if known.startswith(below))]:
            if name not in expected:
                return f"{SUMS_FILE} does not name {name}"
            if (sha256 := _sha256(folder / name)) != expected[name]:
                return f"{name} has the SHA-256 {sha256[:8]}..., expected {expected[name][:8]}..."
    except ConfigError as error:
        return str(error)
    return None


def require_undamaged(folder: Path, *names: str, advice: str | None = None) -> None:
    """Check files of a folder; one without checksums is told of and taken as it is.

    Args:
        folder: Of a checkpoint, unless there is an advice.
        names: As of `find_damage`.
        advice: What to do about damage.

    Raises:
        CheckpointError: One has changed since its checksum was written down.
    """
    if not (folder / SUMS_FILE).exists():
        logger.warning("%s: has no %s, so damage may pass unnoticed", folder, SUMS_FILE)
    elif damage := find_damage(folder, *names):
        advice = advice or (
            "copy the whole checkpoint again. Where it was changed on purpose, remove "
            f"{folder / SUMS_FILE}"
        )
        raise CheckpointError(f"{folder} is damaged: {damage}; {advice}")


def _read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 by the file's name, as far as lines are of that form."""
    lines = read_text(folder / SUMS_FILE).split("\n")
    return {line[66:]: line[:64] for line in lines if line}


def _sha256(path: Path) -> str:
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
