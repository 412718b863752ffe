"""Coarser copies of meshes whose shape has a formula."""

import numpy as np
import pytest

from vla_crl.files.writing import cache_folder
from vla_crl.sim.renderer import decimation
from vla_crl.sim.renderer.decimation import (
    NUM_LEVELS,
    SMALL_MESH,
    Level,
    levels_of_detail,
)

RINGS, SECTORS = 40, 60


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def surface(point, num_rows, num_columns):
    """Return a grid over the unit square; the texture's u is the column, v the row."""
    v, u = np.meshgrid(np.linspace(0, 1, num_rows + 1), np.linspace(0, 1, num_columns + 1))
    u, v = u.T.reshape(-1), v.T.reshape(-1)
    first = (np.arange(num_rows)[:, None] * (num_columns + 1) + np.arange(num_columns)).reshape(-1)
    below = first + num_columns + 1
    faces = np.concatenate(
        [np.stack([first, below, below + 1], 1), np.stack([first, below + 1, first + 1], 1)]
    )
    positions, normals = point(u, v)
    return Level(
        positions.astype(np.float32),
        faces.astype(np.int32),
        normals[faces].astype(np.float32),
        np.stack([u, v], axis=1)[faces].astype(np.float32),
    )


def sphere_point(u, v):
    longitude, polar = 2 * np.pi * u, np.pi * v
    xyz = np.stack(
        [np.sin(polar) * np.cos(longitude), np.sin(polar) * np.sin(longitude), np.cos(polar)],
        axis=1,
    )
    # The seam is closed: the last column has the positions of the first.
    return np.round(xyz, 6) + 0.0, xyz


def wavy_point(u, v):
    positions = np.stack([u, v, 0.02 * np.sin(6 * u)], axis=1)
    return positions, np.broadcast_to([0.0, 0.0, 1.0], positions.shape)


def test_levels_of_a_sphere_get_coarser_and_stay_near_it():
    sphere = surface(sphere_point, RINGS, SECTORS)
    levels = levels_of_detail(sphere)
    counts = [len(level.faces) for level in levels]
    deviations = [level.deviation for level in levels]
    assert len(levels) == NUM_LEVELS
    assert levels[0] is sphere
    assert counts[1] == pytest.approx(len(sphere.faces) / 3, rel=0.1)
    assert (np.diff(counts) <= 0).all()
    assert (np.diff(deviations) >= -1e-3).all()
    assert deviations[1] < 0.02
    for level in levels[:3]:
        assert np.linalg.norm(level.vertices, axis=1) == pytest.approx(1, abs=1e-4)
        # A sphere's normal is its position; a sliver may have turned over.
        agrees = (level.normals * level.vertices[level.faces]).sum(axis=-1) > 0.97
        assert agrees.mean() > 0.99


def test_texture_coordinates_do_not_jump_over_the_seam():
    # The closed seam joins u = 0 and u = 1; a triangle across it would span the whole picture.
    copy = levels_of_detail(surface(sphere_point, RINGS, SECTORS))[2]
    # Near the poles all longitudes meet.
    away = np.abs(copy.vertices[copy.faces][..., 2]).max(axis=1) < 0.9
    assert away.sum() > 100
    assert np.ptp(copy.texcoords[away], axis=1).max() < 0.3


def test_texture_coordinates_stay_where_they_were():
    sheet = surface(wavy_point, 30, 30)
    copy = levels_of_detail(sheet)[2]
    assert len(copy.faces) < len(sheet.faces) / 5
    # On this sheet u is x and v is y.
    positions = copy.vertices[copy.faces][..., :2]
    assert np.abs(positions - copy.texcoords).max() < 0.05


def test_sharp_edge_stays_sharp():
    # A roof: the two slopes have their own normals and share the ridge's positions.
    def slope(side):
        def point(u, v):
            positions = np.stack([side * u, v, 1 - u], axis=1)
            return positions, np.broadcast_to([side * 0.5**0.5, 0, 0.5**0.5], positions.shape)

        return surface(point, 16, 16)

    left, right = slope(-1.0), slope(1.0)
    roof = Level(
        np.concatenate([left.vertices, right.vertices]),
        np.concatenate([left.faces[:, ::-1], right.faces + len(left.vertices)]).astype(np.int32),
        np.concatenate([left.normals, right.normals]),
        left.texcoords[:0],
    )
    copy = levels_of_detail(roof)[1]
    assert np.abs(np.abs(copy.normals[..., 0]) - 0.5**0.5).max() < 1e-3
    assert copy.texcoords.shape == (0, 3, 2)


def test_small_mesh_is_left_as_it_is():
    small = surface(sphere_point, 10, 20)
    assert len(small.faces) < SMALL_MESH
    assert all(level is small for level in levels_of_detail(small))
    assert not cache_folder("meshes").exists()


def test_levels_come_from_the_cache_the_second_time(monkeypatch):
    sphere = surface(sphere_point, RINGS, SECTORS)
    computed = levels_of_detail(sphere)
    monkeypatch.delattr(decimation, "_decimate")
    for level, expected in zip(levels_of_detail(sphere), computed, strict=True):
        assert level.deviation == expected.deviation
        for array, other in zip(level[:-1], expected[:-1], strict=True):
            assert array.dtype == other.dtype
            assert np.array_equal(array, other)
    assert [file.suffix for file in cache_folder("meshes").iterdir()] == [".npz"]


@pytest.mark.parametrize("content", [b"", b"PK nonsense", "half"])
def test_broken_cache_file_is_written_anew(content, caplog):
    sphere = surface(sphere_point, RINGS, SECTORS)
    computed = levels_of_detail(sphere)
    (file,) = cache_folder("meshes").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    again = levels_of_detail(sphere)
    assert "broken cache file" in caplog.text
    assert np.array_equal(again[1].vertices, computed[1].vertices)
    caplog.clear()
    levels_of_detail(sphere)
    assert not caplog.text


def test_cache_that_cannot_be_written_is_reported_once_per_mesh(tmp_path, monkeypatch, caplog):
    (tmp_path / "vla_crl").mkdir()
    (tmp_path / "vla_crl" / "meshes").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(levels_of_detail(surface(sphere_point, RINGS, SECTORS))) == NUM_LEVELS
    assert "cannot be cached" in caplog.text
    assert "set XDG_CACHE_HOME" in caplog.text
