"""What replay methods keep of earlier tasks: a fixed number of chunks a task, on disk.

Chunks lie in files that are only added (`records.py`); a method's state holds where each is. So a
checkpoint takes 24 bytes a chunk, and a run that goes on from an older state finds its chunks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vla_crl.continual.records import Layout, RecordFile, Records
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files.checksums import require_undamaged
from vla_crl.rows import Rows

R = TypeVar("R", bound=Rows)
_PLACE = 2
"""Numbers that say where a chunk is: of the file, and of the record in it."""
_ADVICE = {
    False: "restore the files from a copy of the run; nothing else holds these chunks of earlier "
    "stages, so without one begin the run again, with another --run-dir",
    True: "restore the files from a copy of the run, or begin the stage again",
}
"""What to do about damage, by whether the file is of the stage that is trained."""


@dataclass
class _Reservoir:
    """A uniform sample of the chunks of a task that came by.

    Attributes:
        num_seen: How many came by.
        places: [n, 2] file and record of those that are kept.
    """

    num_seen: int = 0
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, _PLACE), np.int64))


def places_in_reservoir(
    num_seen: int, num_new: int, size: int, rng: np.random.Generator
) -> dict[int, int]:
    """Return which of some new items get which places of a uniform sample (Vitter, algorithm R).

    Args:
        num_seen: Items that came by before.
        num_new: Items that come now.
        size: Places.
        rng: Decides.

    Returns:
        Item by place; an item there before is replaced.
    """
    taken: dict[int, int] = {}
    for item, seen in enumerate(range(num_seen, num_seen + num_new)):
        place = seen if seen < size else int(rng.integers(seen + 1))
        if place < size:
            taken[place] = item
    return taken


class ReplayMemory:
    """Keeps a uniform sample of the chunks that were offered, for every task by itself.

    Offer chunks with `add` while a stage is trained, end the stage with `close_stage`, draw with
    `draw`. What is kept depends on the chunks and on the random numbers given alone.

    Attributes:
        quota: Chunks a task.
    """

    def __init__(self, quota: int) -> None:
        """Begin an empty memory, in no folder yet.

        Args:
            quota: Chunks a task that are kept at most.
        """
        self.quota = quota
        self._folder: Path | None = None
        self._reservoirs: dict[int, _Reservoir] = {}
        self._next_file = 0
        # When the stage began: the next file, and those that were needed.
        self._begun, self._begun_with = 0, set[int]()
        self._files: dict[int, RecordFile] = {}

    def __len__(self) -> int:
        return sum(len(reservoir.places) for reservoir in self._reservoirs.values())

    @property
    def tasks(self) -> tuple[int, ...]:
        """Tasks of which there are chunks."""
        return tuple(task for task, kept in self._reservoirs.items() if len(kept.places))

    def num_chunks(self, task: int) -> int:
        """Return how many chunks of a task there are."""
        kept = self._reservoirs.get(task)
        return 0 if kept is None else len(kept.places)

    def open(self, folder: Path) -> None:
        """Say where the files are; it is made when there is the first.

        Raises:
            CheckpointError: A file that the memory's state names is missing or damaged.
        """
        self._folder = folder
        self._check_files()

    def add(self, task: int, chunks: Records, rng: np.random.Generator) -> int:
        """Offer chunks of a task; all that ever were are kept with the same probability.

        Args:
            task: Number.
            chunks: In the order in which they came.
            rng: Decides.

        Returns:
            How many were taken in, perhaps in the place of others.
        """
        kept = self._reservoirs.setdefault(task, _Reservoir())
        taken = places_in_reservoir(kept.num_seen, len(chunks.data), self.quota, rng)
        kept.num_seen += len(chunks.data)
        if not taken:
            return 0
        order = sorted(set(taken.values()))
        row_of = {chunk: row for row, chunk in enumerate(order)}
        number = self._write(Records(chunks.layout, [chunks.data[chunk] for chunk in order]))
        grown = max(len(kept.places), max(taken) + 1)
        places = np.zeros((grown, _PLACE), np.int64)
        places[: len(kept.places)] = kept.places
        for place, chunk in taken.items():
            places[place] = number, row_of[chunk]
        kept.places = places
        return len(order)

    def close_stage(self, tasks: Sequence[int]) -> None:
        """Bring the chunks of tasks that were just trained together, into one file each.

        Files that were not needed any more when the stage began are removed: no state that a run
        may go on from names them. Those of the stage itself are left for the next one.
        """
        dropped = {n for n in self._numbers() if n < self._begun} - self._begun_with
        for number in dropped - self._needed():
            self._files.pop(number, None)
            self._path(number).unlink()
        for task in tasks:
            kept = self._reservoirs.get(task)
            if kept is None or len(set(kept.places[:, 0].tolist())) < 2:
                continue
            records = [self._file(int(f)).read(int(row)) for f, row in kept.places]
            number = self._write(Records(self._file(int(kept.places[0, 0])).layout, records))
            kept.places = np.stack([np.full(len(records), number), np.arange(len(records))], axis=1)
        self._begun, self._begun_with = self._next_file, self._needed()

    def draw(self, num_chunks: int, tasks: Sequence[int], rng: np.random.Generator, like: R) -> R:
        """Return chunks, of each task as many, none twice unless there are too few.

        Args:
            num_chunks: How many in all, at least one a task.
            tasks: Of which; each has some.
            rng: Decides.
            like: Rows of the same kind; their number and content do not matter.

        Raises:
            SpecError: There are none of a task, too few are asked for, or they are of another kind.
        """
        if not 0 < len(tasks) <= num_chunks:
            raise SpecError(
                f"memory: {num_chunks} chunks of {len(tasks)} tasks, expected at least one a task"
            )
        records: list[bytes] = []
        layout = Layout.of(like.flatten())
        for turn, task in enumerate(tasks):
            if not (num_kept := self.num_chunks(task)):
                raise SpecError(f"memory: there are no chunks of task {task} to draw")
            share = num_chunks // len(tasks) + (turn < num_chunks % len(tasks))
            orders = [rng.permutation(num_kept) for _ in range(-(-share // num_kept))]
            for number, row in self._reservoirs[task].places[np.concatenate(orders)[:share]]:
                file = self._file(int(number))
                if file.layout != layout:
                    raise SpecError(
                        f"memory: {file.path} holds the columns {file.layout.as_text()}, expected "
                        f"{layout.as_text()}"
                    )
                records.append(file.read(int(row)))
        return like.unflatten(layout.decode(records))

    def num_bytes(self) -> int:
        """Return what all its files take."""
        return sum(self._path(number).stat().st_size for number in self._numbers())

    def state_dict(self) -> dict[str, Tensor]:
        """Return where every chunk is; the chunks stay in their files."""
        state = {
            "next_file": torch.tensor(self._next_file),
            "begun": torch.tensor(self._begun),
            "begun_with": torch.tensor(sorted(self._begun_with), dtype=torch.int64),
        }
        for task, kept in self._reservoirs.items():
            state[f"{task}/num_seen"] = torch.tensor(kept.num_seen)
            state[f"{task}/places"] = torch.from_numpy(kept.places.copy())
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointError: The state is none, or a file is missing or damaged.
        """
        try:
            self._next_file, self._begun = int(state["next_file"]), int(state["begun"])
            self._begun_with = set(state["begun_with"].tolist())
            names = sorted({name.partition("/")[0] for name in state if "/" in name}, key=int)
            self._reservoirs = {
                int(name): _Reservoir(
                    int(state[f"{name}/num_seen"]),
                    state[f"{name}/places"].reshape(-1, _PLACE).numpy().copy(),
                )
                for name in names
            }
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"memory: its state is not complete ({error})") from error
        self._files.clear()
        if self._folder is not None:
            self._check_files()

    def _check_files(self) -> None:
        needed = sorted(self._needed())
        for is_of_stage in (False, True):
            names = [_name(n) for n in needed if (n >= self._begun) == is_of_stage]
            if names:
                require_undamaged(self._home, *names, advice=_ADVICE[is_of_stage])
        for task, kept in self._reservoirs.items():
            for number, row in kept.places:
                if row >= len(self._file(int(number))):
                    raise CheckpointError(
                        f"{self._path(int(number))}: has no record {row}, which the memory of task "
                        f"{task} needs; {_ADVICE[number >= self._begun]}"
                    )

    def _write(self, records: Records) -> int:
        number = self._next_file
        self._next_file += 1
        self._files.pop(number, None)
        RecordFile.write(self._path(number), records)
        return number

    def _file(self, number: int) -> RecordFile:
        if number not in self._files:
            try:
                self._files[number] = RecordFile(self._path(number))
            except CheckpointError as error:
                advice = _ADVICE[number >= self._begun]
                raise CheckpointError(f"{error}; {advice}") from error
        return self._files[number]

    def _numbers(self) -> set[int]:
        """Return the files that there are and that this memory has written."""
        found = {int(p.stem) for p in self._home.glob("*.safetensors") if p.stem.isdecimal()}
        return {number for number in found if number < self._next_file}

    def _needed(self) -> set[int]:
        """Return the files that hold chunks which are kept."""
        return {int(n) for kept in self._reservoirs.values() for n in kept.places[:, 0]}

    @property
    def _home(self) -> Path:
        if self._folder is None:
            raise ConfigError("memory: it has no folder yet; open it in before_task: stage.folder")
        return self._folder

    def _path(self, number: int) -> Path:
        return self._home / _name(number)


def _name(number: int) -> str:
    return f"{number:06d}.safetensors"
