"""The state of a training on disk, in two generations: of one that is damaged the older one helps.

A generation is a folder `000012` with `state.json`, `state.safetensors` and `SHA256SUMS`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_crl.config import save_json
from vla_crl.errors import CheckpointError
from vla_crl.files.checksums import find_damage, write_sums
from vla_crl.files.reading import read_object
from vla_crl.files.state_dicts import load_tensors, save_tensors
from vla_crl.files.writing import new_folder
from vla_crl.progress import console

FORMAT = 1
RECORD_FILE, TENSORS_FILE = "state.json", "state.safetensors"


@dataclass(frozen=True)
class State:
    """What a training depends on at one moment.

    Attributes:
        record: What is no tensor; JSON types.
        tensors: The rest, flat.
    """

    record: dict[str, Any]
    tensors: dict[str, Tensor]


class Generations:
    """The last two states in a folder, which is made when the first is saved.

    Attributes:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        """Look at nothing yet."""
        self.folder = folder
        self._good: Path | None = None

    def save(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the next generation; of those before it the last good one stays."""
        present = self._present()
        number = 1 + max((int(path.name) for path in present), default=0)
        with new_folder(self.folder / f"{number:06d}") as folder:
            save_tensors(tensors, folder / TENSORS_FILE)
            save_json({"format": FORMAT, **record}, folder / RECORD_FILE)
            write_sums(folder, RECORD_FILE, TENSORS_FILE)
        for path in present:
            if path != self._good:
                shutil.rmtree(path)
        self._good = self.folder / f"{number:06d}"

    def load(self) -> State | None:
        """Return the newest state that is undamaged; of damaged ones a line tells.

        Returns:
            None if there is none.

        Raises:
            CheckpointError: It was written by another version.
        """
        for folder in reversed(self._present()):
            if damage := find_damage(folder, RECORD_FILE, TENSORS_FILE):
                console.print(f"{folder} is damaged ({damage}); it is not used", soft_wrap=True)
                continue
            record = read_object(folder / RECORD_FILE)
            if record.pop("format", None) != FORMAT:
                raise CheckpointError(
                    f"{folder}: written by another version; resume with that one, or remove "
                    f"{self.folder}: the stage then begins again"
                )
            self._good = folder
            return State(record, load_tensors(folder / TENSORS_FILE))
        return None

    def clear(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _present(self) -> list[Path]:
        """Return the folders of generations, oldest first."""
        return sorted(path for path in self.folder.glob("[0-9]*") if path.name.isdecimal())
