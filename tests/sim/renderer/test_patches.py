"""Triangles sorted into patches: none lost, and no patch passed over that is seen."""

import numpy as np
import pytest

from vla_crl.sim.renderer.decimation import Level, area_vectors
from vla_crl.sim.renderer.patches import PATCH_FACES, in_patches


@pytest.fixture(params=[40, 3000])
def level(request):
    """Return a crumpled sheet of triangles, two of them without area."""
    random, side = np.random.default_rng(0), int(np.sqrt(request.param / 2)) + 1
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / side
    vertices = np.column_stack([grid, np.sin(9 * grid[:, 0]) * np.cos(7 * grid[:, 1]) / 4])
    corner = np.arange(side * side).reshape(side, side)[:-1, :-1].reshape(-1)
    faces = np.concatenate(
        [
            np.column_stack([corner, corner + 1, corner + side]),
            np.column_stack([corner + 1, corner + side + 1, corner + side]),
            [(0, 0, 1), (2, 2, 2)],
        ]
    )
    normals = random.normal(size=(len(faces), 3, 3)).astype(np.float32)
    texcoords = random.normal(size=(len(faces), 3, 2)).astype(np.float32)
    return Level(vertices.astype(np.float32), faces.astype(np.int32), normals, texcoords, 0.1)


def described(level):
    """Return what is drawn of each triangle, in an order of its own."""
    corners = level.vertices[level.faces].reshape(len(level.faces), -1)
    rows = [corners, level.normals.reshape(len(corners), -1)]
    rows += [level.texcoords.reshape(len(corners), -1)]
    table = np.hstack(rows)
    return table[np.lexsort(table.T)]


def test_every_triangle_with_an_area_stays_as_it_was(level):
    expected = level._replace(
        faces=level.faces[:-2], normals=level.normals[:-2], texcoords=level.texcoords[:-2]
    )
    sorted_level, _ = in_patches(level)
    assert np.array_equal(described(sorted_level), described(expected))
    assert sorted_level.deviation == level.deviation


def test_patches_follow_each_other_and_use_their_own_vertices(level):
    sorted_level, patches = in_patches(level)
    ranges = patches.ranges
    assert ranges[0, 0] == ranges[0, 2] == 0
    assert ranges[-1].tolist()[1::2] == [len(sorted_level.vertices), len(sorted_level.faces)]
    assert np.array_equal(ranges[1:, ::2], ranges[:-1, 1::2])
    assert (np.diff(ranges[:, 2:]) <= PATCH_FACES).all()
    for first, last, first_face, last_face in ranges:
        faces = sorted_level.faces[first_face:last_face]
        assert np.array_equal(np.unique(faces), np.arange(first, last))


def test_balls_hold_their_patches(level):
    sorted_level, patches = in_patches(level)
    for (first, last, *_), ball in zip(patches.ranges, patches.balls, strict=True):
        distance = np.linalg.norm(sorted_level.vertices[first:last] - ball[:3], axis=1)
        assert distance.max() <= ball[3] + 1e-6


def test_cones_hide_only_what_is_seen_from_behind(level):
    sorted_level, patches = in_patches(level)
    corners = sorted_level.vertices[sorted_level.faces]
    normals = area_vectors(corners)
    hidden = 0
    for eye in np.random.default_rng(1).normal(size=(50, 3)) * 5:
        faces_eye = (normals * (eye - corners[:, 0])).sum(axis=1) > 0
        way = patches.balls[:, :3] - eye
        along = (way * patches.cones[:, :3]).sum(axis=1)
        reach = patches.cones[:, 3] * np.linalg.norm(way, axis=1) + patches.balls[:, 3]
        for patch in np.flatnonzero(along >= reach):
            hidden += 1
            assert not faces_eye[slice(*patches.ranges[patch, 2:])].any()
    assert hidden > 0 or len(patches.ranges) == 1


def test_a_mesh_without_triangles_has_no_patches():
    empty = Level(
        np.zeros((3, 3), np.float32),
        np.zeros((1, 3), np.int32),
        np.zeros((1, 3, 3), np.float32),
        np.zeros((0, 3, 2), np.float32),
    )
    sorted_level, patches = in_patches(empty)
    assert len(sorted_level.faces) == 0
    assert patches.ranges.shape == patches.balls.shape == patches.cones.shape == (0, 4)
