"""Meshes whose picture is known: those of a primitive, or with a texture of known colours."""

import mujoco
import numpy as np
import pytest
from PIL import Image

from vla_crl.sim.renderer import BatchRenderer

SIZE = 65
MIDDLE = SIZE // 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scene(bodies, asset="", files=None):
    """Return a model with a camera at the origin that looks along +y, z up, without a headlight."""
    return mujoco.MjModel.from_xml_string(
        f"""
    <mujoco>
      <visual><headlight active="0"/></visual>
      <statistic extent="1" center="0 0 0"/>
      <asset>{asset}</asset>
      <worldbody>
        <light directional="true" dir="1 2 -1" diffuse=".6 .6 .6" ambient=".3 .3 .3"/>
        <camera name="eye" xyaxes="1 0 0 0 0 1" fovy="60"/>{bodies}
      </worldbody>
    </mujoco>""",
        files,
    )


def draw(model, poses, size=SIZE, **options):
    renderer = BatchRenderer(model, ["eye"], size, size, **options)
    return renderer.render(*poses)[0, 0].astype(int), renderer.segment(*poses)[0, 0]


@pytest.mark.parametrize("level_of_detail", [True, False])
@pytest.mark.parametrize("size", [33, 257])
def test_sphere_of_triangles_looks_like_a_sphere(level_of_detail, size, poses_of):
    mesh = scene(
        '<geom type="mesh" mesh="ball" pos=".1 2 .2" rgba=".9 .7 .5 1"/>',
        '<mesh name="ball" builtin="sphere" params="4" scale=".5 .5 .5"/>',
    )
    ball = scene('<geom type="sphere" size=".5" pos=".1 2 .2" rgba=".9 .7 .5 1"/>')
    image, ids = draw(mesh, poses_of(mesh), size, level_of_detail=level_of_detail)
    expected_image, expected_ids = draw(ball, poses_of(ball), size)
    assert ((ids == 0) & (expected_ids == 0)).sum() / (expected_ids == 0).sum() > 0.98
    assert not ((ids == 0) & (expected_ids < 0)).any()
    both = (ids == 0) & (expected_ids == 0)
    assert np.abs(image - expected_image)[both].mean() < 4


@pytest.mark.parametrize(
    "pose", ['pos="0 2 0"', 'pos=".1 1.6 .1" euler="20 30 40"', 'pos="0 -.4 -.6" euler="5 0 10"']
)
def test_box_of_triangles_covers_the_pixels_of_a_box(pose, poses_of):
    # The last one reaches behind the eye, so the near plane cuts its triangles.
    corners = " ".join(
        f"{x} {y} {z}" for x in (-0.5, 0.5) for y in (-0.9, 0.9) for z in (-0.3, 0.3)
    )
    mesh = scene(f'<geom type="mesh" mesh="box" {pose}/>', f'<mesh name="box" vertex="{corners}"/>')
    box = scene(f'<geom type="box" size=".5 .9 .3" {pose}/>')
    ids, expected = draw(mesh, poses_of(mesh))[1], draw(box, poses_of(box))[1]
    assert (expected == 0).sum() > 100
    assert (ids != expected).sum() <= 2


def test_mesh_and_primitive_hide_each_other_by_depth(poses_of):
    model = scene(
        '<geom type="mesh" mesh="ball" pos="0 2 0"/>'
        '<geom type="box" size=".3 .3 .3" pos=".5 2 0"/>',
        '<mesh name="ball" builtin="sphere" params="4" scale=".5 .5 .5"/>',
    )
    _, ids = draw(model, poses_of(model))
    # At x = 0.2 the ball's front is at 2 - sqrt(0.25 - 0.04) = 1.54, the box's at 1.7.
    assert ids[MIDDLE, MIDDLE] == 0
    assert ids[MIDDLE, MIDDLE + 7] == 0
    assert ids[MIDDLE, MIDDLE + 20] == 1


def test_inside_of_a_mesh_is_not_seen(poses_of):
    model = scene(
        '<geom type="mesh" mesh="ball"/>', '<mesh name="ball" builtin="sphere" params="3"/>'
    )
    assert (draw(model, poses_of(model))[1] == -1).all()


# A square of 1 m, 1 m ahead, facing the eye; its picture is upright and has its corner 0 0 below.
SQUARE = b"""
v -.5 1 -.5
v .5 1 -.5
v .5 1 .5
v -.5 1 .5
v 0 3 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
f 1/1 2/2 3/3
f 1/1 3/3 4/4
f 2/1 1/2 5/3
f 3/1 2/2 5/3
f 4/1 3/2 5/3
f 1/1 4/2 5/3
"""


def textured_square(tmp_path, pixels):
    """Write the square and its picture as files and return their model; all light is ambient."""
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "square.obj").write_bytes(SQUARE)
    model = scene(
        '<geom type="mesh" mesh="square" material="picture"/>',
        f"""
        <mesh name="square" file="{tmp_path}/square.obj" inertia="shell"/>
        <texture name="picture" type="2d" file="{tmp_path}/picture.png"/>
        <material name="picture" texture="picture"/>""",
    )
    model.light_ambient[:], model.light_diffuse[:] = 1, 0
    return model


def test_texture_lies_where_the_texture_coordinates_say(tmp_path, poses_of):
    red, green, blue, white = (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 200)
    pixels = np.array([[red, green], [blue, white]], np.uint8).repeat(32, 0).repeat(32, 1)
    model = textured_square(tmp_path, pixels)
    image, _ = draw(model, poses_of(model))
    # The square spans 0.5 / tan 30 = 0.866 of the half picture: 28 pixels.
    assert image[MIDDLE - 14, MIDDLE - 14].tolist() == list(red)
    assert image[MIDDLE - 14, MIDDLE + 14].tolist() == list(green)
    assert image[MIDDLE + 14, MIDDLE - 14].tolist() == list(blue)
    assert image[MIDDLE + 14, MIDDLE + 14].tolist() == list(white)


def test_fine_texture_fades_to_its_mean(tmp_path, poses_of):
    # Stripes of one texel, 512 of them on 55 pixels.
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[:, ::2] = 200
    model = textured_square(tmp_path, pixels)
    image, ids = draw(model, poses_of(model))
    assert (ids == 0).sum() > 2500
    assert np.abs(image[ids == 0] - 100).max() <= 2


def test_texture_on_a_box_is_projected_along_its_z_axis(poses_of):
    asset = """
        <texture name="t" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1"
                 width="64" height="64"/>
        <material name="tiled" texture="t"/>"""
    # Its upper side faces the eye: x to the right, y up.
    model = scene(
        '<geom type="box" size=".5 .5 .1" pos="0 2 0" euler="90 0 0" material="tiled"/>', asset
    )
    model.light_ambient[:], model.light_diffuse[:] = 1, 0
    image, _ = draw(model, poses_of(model))
    first, second = [255, 0, 0], [0, 0, 255]
    assert image[MIDDLE - 7, MIDDLE - 7].tolist() == first
    assert image[MIDDLE + 7, MIDDLE + 7].tolist() == first
    assert image[MIDDLE - 7, MIDDLE + 7].tolist() == second
    assert image[MIDDLE + 7, MIDDLE - 7].tolist() == second


def test_cube_texture_gives_each_side_its_picture(poses_of):
    asset = """
        <texture name="t" type="cube" builtin="flat" mark="none" rgb1="1 0 0" rgb2="0 0 1"
                 width="8" height="48"/>
        <material name="cube" texture="t"/>"""
    model = scene('<geom type="box" size=".5 .5 .5" pos="0 2 0" material="cube"/>', asset)
    model.light_ambient[:], model.light_diffuse[:] = 1, 0
    start = int(model.tex_adr[0])
    for face in range(6):  # right, left, up, down, front, back
        model.tex_data[start + face * 192 : start + (face + 1) * 192] = 40 * face
    image, _ = draw(model, poses_of(model))
    # The side towards the eye is -y: 'down' in OpenGL's order +x -x +y -y +z -z.
    assert image[MIDDLE, MIDDLE].tolist() == [120, 120, 120]


def test_transparent_geom_is_blended_over_what_lies_behind(poses_of):
    model = scene(
        '<geom type="box" size="9 .1 9" pos="0 3 0" rgba="1 0 0 1"/>'
        '<geom type="box" size=".3 .1 .3" pos="0 2 0" rgba="0 0 1 .25"/>'
        '<geom type="box" size=".3 .1 .3" pos="0 4 0" rgba="0 1 0 .5"/>'
    )
    model.light_ambient[:], model.light_diffuse[:] = 1, 0
    image, ids = draw(model, poses_of(model))
    # MuJoCo draws it twice: red 0.75^2 = 0.5625, blue 0.4375.
    assert image[MIDDLE, MIDDLE].tolist() == [143, 0, 112]
    assert image[0, 0].tolist() == [255, 0, 0]
    assert ids[MIDDLE, MIDDLE] == 1
    assert (ids != 2).all()  # hidden


def test_only_the_nearest_transparent_geom_is_seen(poses_of):
    model = scene(
        '<geom type="box" size=".3 .1 .3" pos="0 2 0" rgba="0 0 1 .5"/>'
        '<geom type="box" size=".3 .1 .3" pos="0 3 0" rgba="1 0 0 .5"/>'
    )
    model.light_ambient[:], model.light_diffuse[:] = 1, 0
    assert draw(model, poses_of(model))[0][MIDDLE, MIDDLE].tolist() == [0, 0, 191]  # 1 - 0.5^2


def test_meshes_do_not_depend_on_threads_and_batch(poses_of):
    model = scene(
        """<body><freejoint/><geom type="mesh" mesh="ball" rgba="1 1 1 .5"/></body>
        <body><freejoint/><geom type="mesh" mesh="cone"/></body>
        <geom type="box" size="2 .1 2" pos="0 5 0"/>""",
        """<mesh name="ball" builtin="sphere" params="4" scale=".4 .4 .4"/>
        <mesh name="cone" builtin="cone" params="40 .5" scale=".3 .3 .3"/>""",
    )
    qpos = model.qpos0 + np.random.default_rng(0).normal(size=(7, model.nq)) * 0.3
    qpos[:, [1, 8]] += 1.5
    poses = poses_of(model, qpos)
    expected = BatchRenderer(model, ["eye"], 48, 40).render(*poses)
    assert len(np.unique(expected.reshape(7, -1), axis=0)) == 7
    threaded = BatchRenderer(model, ["eye"], 48, 40, num_threads=3)
    assert np.array_equal(threaded.render(*poses), expected)
    for world in range(7):
        alone = threaded.render(*(field[world : world + 1] for field in poses))
        assert np.array_equal(alone[0], expected[world])
