"""What is kept in the cache, what `collect` wrote, and what cannot be read."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.errors import ConfigError
from vla_crl.files.writing import cache_folder
from vla_crl.rollout.demonstrations import Demonstrations, collect_demonstrations
from vla_crl.sim.backends import find_suite


def read(path: Path, suite: str = "libero_spatial", pixels: int = 32, **settings: Any):
    config = DatasetConfig(**settings)
    return read_demonstrations(path, config, find_suite(suite), pixels=pixels)


def assert_equal(one: Demonstrations, other: Demonstrations) -> None:
    for field in dataclasses.fields(Demonstrations):
        left, right = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(left, right, err_msg=field.name)
        assert np.asarray(left).dtype == np.asarray(right).dtype, field.name


@pytest.fixture(scope="module")
def collected() -> Demonstrations:
    return collect_demonstrations(find_suite("tabletop_30"), 1, image_size=32)


def test_types_are_those_of_collected_demonstrations(collected, write_hdf5):
    found = read(write_hdf5())
    for field in dataclasses.fields(Demonstrations):
        ours, theirs = getattr(found, field.name), getattr(collected, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype.kind == theirs.dtype.kind, field.name
            assert ours.ndim == theirs.ndim, field.name


def test_pictures_are_mapped_from_the_cache_not_held(write_hdf5, cache):
    demonstrations = read(write_hdf5())
    assert isinstance(demonstrations.images, np.memmap)
    assert Path(str(demonstrations.images.filename)).is_relative_to(cache)
    assert cache_folder("datasets") == cache
    for name in ("object_uv", "object_visible"):
        assert not getattr(demonstrations, name).size, f"{name} takes memory"


def test_what_has_been_read_is_there_without_the_package(write_hdf5, cache, monkeypatch):
    path = write_hdf5()
    first = read(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert_equal(read(path), first)
    read(path, suite="libero_spatial@original")
    assert len(list(cache.glob("*"))) == 1


def test_threads_change_nothing(write_hdf5, cache):
    path, suite = write_hdf5(lengths=(4, 3, 5, 2, 6)), find_suite("libero_spatial")
    one = read_demonstrations(path, DatasetConfig(), suite, pixels=32, num_threads=1)
    shutil.rmtree(cache)
    again = read_demonstrations(path, DatasetConfig(), suite, pixels=32, num_threads=4)
    assert_equal(again, one)


def test_other_files_settings_and_sizes_are_read_anew(write_hdf5, cache):
    path = write_hdf5(lengths=(4, 3))
    read(path)
    changes: list[dict[str, Any]] = [
        {"pixels": 16},
        {"view": "upright"},
        {"seen": "before"},
        {"suite": "libero_spatial@openpi"},
    ]
    for number, settings in enumerate(changes):
        read(path, **settings)
        assert len(list(cache.glob("*"))) == number + 2
    assert len(read(path)) == 5
    write_hdf5(lengths=(4, 4))
    os.utime(path, ns=(1, 1))
    assert len(read(path)) == 6


def test_a_damaged_cache_is_told_with_what_to_delete(write_hdf5, cache):
    path = write_hdf5()
    read(path)
    (folder,) = cache.glob("*")
    for name in ("images.npy", "steps.npz"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:100])
        with pytest.raises(ConfigError, match=f"{folder}: .* is damaged .*delete the folder, and"):
            read(path)
        (folder / name).write_bytes(whole)
    np.save(folder / "images.npy", np.zeros((1, 2, 32, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"damaged \(1 pictures of 5 steps\)"):
        read(path)


def test_a_full_disk_is_told_before_the_reading(write_hdf5, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    message = (
        r"5 steps at 32 pixels need 0.0 GB, but 0.0 are free; set XDG_CACHE_HOME .*or read few"
    )
    with pytest.raises(ConfigError, match=message):
        read(write_hdf5())


def test_what_is_no_dataset_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder; expected a file of"):
        read(tmp_path / "nowhere")
    with pytest.raises(
        ConfigError, match=r"no demonstrations there; .*LeRobot folder with meta/inf"
    ):
        read(tmp_path)


def test_demonstrations_of_libero_are_for_its_suites(write_hdf5):
    with pytest.raises(ConfigError, match="'tabletop_30' is no suite of LIBERO; expected file"):
        read(write_hdf5(), suite="tabletop_30")


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="episodes_per_task = 0, expected at least 1"):
        DatasetConfig(episodes_per_task=0)
