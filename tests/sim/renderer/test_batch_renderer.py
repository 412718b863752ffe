import mujoco
import numpy as np
import pytest

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.renderer import BatchRenderer

SIZE = 65  # odd: the central pixel looks exactly along the view axis
FOVY_DEG = 60.0
MIDDLE = SIZE // 2


def scene(bodies, *, visual="", asset=""):
    """Return a model with a camera at the origin that looks along +y, z up, without a headlight."""
    return mujoco.MjModel.from_xml_string(f"""
    <mujoco>
      <visual><headlight active="0"/>{visual}</visual>
      <statistic extent="1" center="0 0 0"/>
      <asset>
        <hfield name="hills" nrow="2" ncol="2" size="1 1 1 1"/>{asset}
      </asset>
      <worldbody>
        <camera name="eye" xyaxes="1 0 0 0 0 1" fovy="{FOVY_DEG}"/>{bodies}
      </worldbody>
    </mujoco>""")


def screen_coordinates():
    """Return x / depth and z / depth of each pixel's centre."""
    step = 2 * np.tan(np.radians(FOVY_DEG / 2)) / SIZE
    x = (np.arange(SIZE) - MIDDLE) * step
    return x[None, :], -x[:, None]


def segment(model, poses, groups=(0, 1, 2)):
    return BatchRenderer(model, ["eye"], SIZE, SIZE, geom_groups=groups).segment(*poses)[0, 0]


def render(model, poses, camera="eye"):
    return BatchRenderer(model, [camera], SIZE, SIZE).render(*poses)[0, 0]


def test_sphere_is_seen_inside_its_tangent_cone(poses_of):
    model = scene('<geom type="sphere" size=".5" pos="0 2 0"/>')
    x, z = screen_coordinates()
    # tan of the half angle: sin = r / D, so tan = r / sqrt(D^2 - r^2)
    inside = np.hypot(x, z) <= 0.5 / np.sqrt(2.0**2 - 0.5**2)
    assert np.array_equal(segment(model, poses_of(model)) == 0, inside)


def test_box_is_seen_as_its_front_face(poses_of):
    model = scene('<geom type="box" size=".5 .2 .3" pos="0 2 0"/>')
    x, z = screen_coordinates()
    inside = (np.abs(x) <= 0.5 / 1.8) & (np.abs(z) <= 0.3 / 1.8)
    assert np.array_equal(segment(model, poses_of(model)) == 0, inside)


def test_cylinder_along_the_view_axis_is_seen_as_its_front_disc(poses_of):
    model = scene('<geom type="cylinder" size=".4 .5" pos="0 2 0" euler="90 0 0"/>')
    x, z = screen_coordinates()
    assert np.array_equal(segment(model, poses_of(model)) == 0, np.hypot(x, z) <= 0.4 / 1.5)


def test_upright_capsule_is_as_wide_as_its_tangent_planes_and_as_high_as_its_spheres(poses_of):
    model = scene('<geom type="capsule" size=".2 .3" pos="0 2 0"/>')
    seen = segment(model, poses_of(model)) == 0
    x, z = screen_coordinates()
    assert np.array_equal(seen[MIDDLE], np.abs(x[0]) <= 0.2 / np.sqrt(2.0**2 - 0.2**2))
    # The plane through the eye that touches the upper sphere (centre 2, 0.3) is steeper than the
    # line to its centre by asin(r / distance).
    top = np.tan(np.arctan2(0.3, 2.0) + np.arcsin(0.2 / np.hypot(2.0, 0.3)))
    assert np.array_equal(seen[:, MIDDLE], np.abs(z[:, 0]) <= top)


def test_endless_floor_is_seen_up_to_the_far_plane(poses_of):
    model = scene('<geom type="plane" size="0 0 1" pos="0 0 -1"/>', visual='<map zfar="20"/>')
    _, z = screen_coordinates()
    below = np.broadcast_to(z <= -1 / 20, (SIZE, SIZE))
    assert np.array_equal(segment(model, poses_of(model)) == 0, below)


def test_plane_is_not_seen_from_behind(poses_of):
    model = scene('<geom type="plane" size="0 0 1" pos="0 0 1"/>')
    assert (segment(model, poses_of(model)) == -1).all()


def test_part_in_front_of_the_near_plane_is_cut_away_with_all_of_that_surface(poses_of):
    # Front faces before the near plane are cut and back faces are culled: the wall is seen.
    model = scene(
        '<geom type="sphere" size=".5" pos="0 .52 0"/><geom type="box" size="9 .1 9" pos="0 3 0"/>',
        visual='<map znear=".1"/>',
    )
    ids = segment(model, poses_of(model))
    x, z = screen_coordinates()
    # The ray (x, 1, z) t meets the sphere at t (1 + x^2 + z^2) = 0.52 - sqrt(...) of a quadratic.
    squared = 1 + x**2 + z**2
    entry = (0.52 - np.sqrt(np.maximum(0.52**2 - squared * (0.52**2 - 0.5**2), 0))) / squared
    hit = squared * (0.52**2 - 0.5**2) <= 0.52**2
    assert np.array_equal(ids == 0, hit & (entry >= 0.1))
    assert ids[MIDDLE, MIDDLE] == 1


def test_nearer_geom_hides_the_farther_one(poses_of):
    model = scene(
        '<geom type="sphere" size=".2" pos="0 1 0"/><geom type="box" size=".5 .1 .5" pos="0 2 0"/>'
    )
    ids = segment(model, poses_of(model))
    assert ids[MIDDLE, MIDDLE] == 0
    assert ids[MIDDLE, 20] == 1
    assert ids[0, 0] == -1


def test_only_the_chosen_geom_groups_are_drawn(poses_of):
    model = scene(
        '<geom type="hfield" hfield="hills" group="3"/><geom size=".2" pos="0 1 0" group="1"/>'
    )
    assert segment(model, poses_of(model))[MIDDLE, MIDDLE] == 1
    assert (segment(model, poses_of(model), groups=(0, 2)) == -1).all()


def test_invisible_geom_is_not_drawn(poses_of):
    model = scene('<geom size=".2" pos="0 1 0" rgba="1 1 1 0"/>')
    assert (segment(model, poses_of(model)) == -1).all()


def test_directional_light_follows_lamberts_law(poses_of):
    # The light falls on the wall at 60 degrees to its normal: 0.8 (0.2 + 0.6 cos 60) = 0.4.
    model = scene(
        f'<light directional="true" dir="{np.sin(np.pi / 3)} {np.cos(np.pi / 3)} 0"'
        ' diffuse=".6 .3 0" ambient=".2 .2 .2"/>'
        '<geom type="box" size="9 .1 9" pos="0 3 0" rgba=".8 .8 .8 1"/>'
    )
    # The same for green, of which it has half, is 0.28; blue is ambient light alone: 0.16.
    assert render(model, poses_of(model))[MIDDLE, MIDDLE].tolist() == [102, 71, 41]


def test_headlight_shines_along_the_view_axis(poses_of):
    model = scene('<geom type="box" size="9 .1 9" pos="0 3 0" euler="0 0 60" rgba="1 1 1 1"/>')
    model.vis.headlight.active = 1
    model.vis.headlight.ambient[:] = 0.1
    model.vis.headlight.diffuse[:] = 0.6
    # The face that is seen is turned by 60 degrees: 0.1 + 0.6 / 2 = 0.4.
    assert render(model, poses_of(model))[MIDDLE, MIDDLE].tolist() == [102, 102, 102]


def test_spot_light_falls_off_with_distance_angle_and_cone(poses_of):
    model = scene(
        '<light pos="0 1 0" dir="0 1 0" cutoff="30" exponent="2" attenuation="0 0 .25"'
        ' diffuse=".6 .6 .6" ambient="0 0 0"/>'
        '<geom type="box" size="9 .1 9" pos="0 3.1 0" rgba="1 1 1 1"/>'
    )
    image = render(model, poses_of(model))
    # The wall is 2 m from the light: 1 / (0.25 * 4) = 1, so the middle is 0.6.
    assert image[MIDDLE, MIDDLE].tolist() == [153, 153, 153]
    # At tan a = 3 x / 2 (the wall is 3 m from the eye) distance is 2 / cos a, attenuation cos^2 a,
    # cone cos^2 a, n.l = cos a: 0.6 cos^5 a inside 30 degrees, 0 outside.
    x, _ = screen_coordinates()
    angle = np.arctan(3 * np.abs(x[0]) / 2)
    expected = np.where(angle <= np.radians(30), 255 * 0.6 * np.cos(angle) ** 5, 0)
    assert np.abs(image[MIDDLE, :, 0] - expected).max() <= 1


def test_without_any_light_there_is_mujocos_ambient_light(poses_of):
    model = scene('<geom type="box" size="9 .1 9" pos="0 3 0" rgba="1 .5 0 1"/>')
    # 0.3 of each colour: 76.5 rounds up, 38.25 down.
    assert render(model, poses_of(model))[MIDDLE, MIDDLE].tolist() == [77, 38, 0]


def test_material_gives_colour_and_emission(poses_of):
    model = scene(
        '<geom type="box" size=".5 .1 9" pos="0 3 0" material="bright"/>',
        asset='<material name="bright" rgba=".4 .4 .8 1" emission=".5"/>',
    )
    # rgba (0.3 + 0.5) = .32 .32 .64
    assert render(model, poses_of(model))[MIDDLE, MIDDLE].tolist() == [82, 82, 163]


def test_checker_on_a_plane_has_its_quadrants_where_mujoco_puts_them(poses_of):
    model = scene(
        '<camera name="above" pos="0 0 3"/><geom type="plane" size="1 1 1" material="tiled"/>',
        asset="""
        <texture name="t" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1"
                 width="8" height="8"/>
        <material name="tiled" texture="t"/>""",
    )
    image = render(model, poses_of(model), "above")
    # One period across the plane; seen from above with y up, the first colour is top left.
    first, second = [77, 0, 0], [0, 0, 77]
    assert image[MIDDLE - 9, MIDDLE - 9].tolist() == first
    assert image[MIDDLE + 9, MIDDLE + 9].tolist() == first
    assert image[MIDDLE - 9, MIDDLE + 9].tolist() == second
    assert image[MIDDLE + 9, MIDDLE - 9].tolist() == second


def test_skybox_colour_depends_on_the_elevation(poses_of):
    model = scene(
        '<camera name="up" euler="180 0 0"/>',
        asset='<texture type="skybox" builtin="gradient" rgb1="1 1 1" rgb2="0 0 0"'
        ' width="256" height="1536"/>',
    )
    ahead = render(model, poses_of(model))[:, MIDDLE, 0].astype(int)
    assert abs(ahead[MIDDLE] - 128) <= 2
    assert (np.diff(ahead) <= 0).all()
    assert render(model, poses_of(model), "up")[MIDDLE, MIDDLE, 0] >= 253


def test_without_a_skybox_the_background_is_black(poses_of):
    model = scene("")
    assert not render(model, poses_of(model)).any()


def moving_scene():
    return scene(
        """
        <camera name="side" pos="-1 1 .5" xyaxes="0 -1 0 .3 0 1"/>
        <light directional="true" dir=".3 .5 -1"/><light pos="0 1 2" dir="0 0 -1"/>
        <geom type="plane" size="2 2 1" pos="0 0 -.6"/>
        <body pos="0 1 0"><freejoint/><geom type="box" size=".1 .2 .3"/></body>
        <body pos=".3 1 0"><freejoint/><geom type="capsule" size=".1 .2"/></body>
        <body pos="-.3 1 0"><freejoint/><geom type="ellipsoid" size=".1 .2 .3"/></body>
        <body pos="0 1 .4"><freejoint/><geom type="cylinder" size=".1 .2"/></body>"""
    )


@pytest.fixture
def batch(poses_of):
    model = moving_scene()
    random = np.random.default_rng(0)
    qpos = model.qpos0 + random.normal(size=(7, model.nq)) * 0.3
    return model, poses_of(model, qpos)


@pytest.mark.parametrize("num_threads", [2, 3, 16])
def test_images_do_not_depend_on_the_number_of_threads(num_threads, batch):
    model, poses = batch
    cameras = ["side", "eye"]
    expected = BatchRenderer(model, cameras, 48, 40).render(*poses)
    threaded = BatchRenderer(model, cameras, 48, 40, num_threads=num_threads)
    assert expected.shape == (7, 2, 48, 40, 3)
    assert len(np.unique(expected.reshape(7, -1), axis=0)) == 7
    assert np.array_equal(threaded.render(*poses), expected)


def test_images_do_not_depend_on_how_the_batch_is_split(batch):
    model, poses = batch
    renderer = BatchRenderer(model, ["eye", "side"], 48, 40)
    expected, expected_ids = renderer.render(*poses), renderer.segment(*poses)
    out, ids = np.zeros_like(expected), np.zeros_like(expected_ids)
    for rows in (slice(4, 7), slice(0, 1), slice(1, 4)):
        assert renderer.render(*poses, out=out, rows=rows) is out
        renderer.segment(*poses, out=ids, rows=rows)
    assert np.array_equal(out, expected)
    assert np.array_equal(ids, expected_ids)
    geom_xpos, geom_xmat, cam_xpos, cam_xmat = (field[::-1] for field in poses)
    backwards = renderer.render(geom_xpos, geom_xmat, cam_xpos, cam_xmat)
    assert np.array_equal(backwards[::-1], expected)


@pytest.mark.parametrize("geom", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("field", "number"), [(0, 0), (0, 2), (1, 0), (1, 5)])
def test_what_has_no_finite_pose_is_not_drawn(batch, geom, value, field, number):
    model, poses = batch
    renderer = BatchRenderer(model, ["eye", "side"], 48, 40)
    away, broken = [part.copy() for part in poses], [part.copy() for part in poses]
    away[0][:, geom] = 1e4  # beyond the far plane
    broken[field][:, geom, number] = value
    assert np.array_equal(renderer.segment(*broken), renderer.segment(*away))
    assert np.array_equal(renderer.render(*broken), renderer.render(*away))


@pytest.mark.parametrize("field", [2, 3])
def test_a_camera_without_a_finite_pose_sees_nothing(batch, field):
    model, poses = batch
    renderer = BatchRenderer(model, ["eye"], 48, 40)
    poses = [part.copy() for part in poses]
    poses[field][:] = np.nan
    assert (renderer.segment(*poses) == -1).all()
    assert (renderer.render(*poses) == 0).all()


def test_only_the_asked_rows_are_written(batch):
    model, poses = batch
    renderer = BatchRenderer(model, ["eye"], 16, 16)
    out = np.full((7, 1, 16, 16, 3), 9, np.uint8)
    renderer.render(*poses, out=out, rows=slice(2, 4))
    written = (out != 9).any(axis=(1, 2, 3, 4))
    assert written.tolist() == [False, False, True, True, False, False, False]


def test_empty_batch_gives_no_images(batch):
    model, poses = batch
    renderer = BatchRenderer(model, ["eye"], 16, 16, num_threads=2)
    assert renderer.render(*(field[:0] for field in poses)).shape == (0, 1, 16, 16, 3)


def test_unknown_camera_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown camera 'ey'. Did you mean 'eye'?"):
        BatchRenderer(scene(""), ["ey"], 8, 8)


def test_no_camera_is_refused():
    with pytest.raises(SpecError, match="give at least one camera"):
        BatchRenderer(scene(""), [], 8, 8)


def test_size_of_zero_is_refused():
    with pytest.raises(SpecError, match="height 0, width 8 and num_threads 1 must all be"):
        BatchRenderer(scene(""), ["eye"], 0, 8)


@pytest.mark.parametrize(
    ("bodies", "message"),
    [
        (
            '<geom name="g" type="hfield" hfield="hills"/>',
            r"geom 'g' \(id 0\) is of type hfield; only plane",
        ),
        ('<body><light name="l"/></body>', r"light 'l' \(id 0\) moves with a body"),
        ('<light name="l" mode="trackcom"/>', "light 'l' .* moves with a body"),
        ('<light name="l" type="point"/>', "light 'l' .* of type point; only directional and spot"),
    ],
)
def test_what_cannot_be_drawn_is_refused(bodies, message):
    with pytest.raises(SpecError, match=message):
        BatchRenderer(scene(bodies), ["eye"], 8, 8)


def test_orthographic_camera_is_refused():
    model = scene('<camera name="flat" projection="orthographic"/>')
    with pytest.raises(SpecError, match="camera 'flat' is orthographic"):
        BatchRenderer(model, ["flat"], 8, 8)


def test_wrong_arrays_are_refused(batch):
    model, poses = batch
    renderer = BatchRenderer(model, ["eye"], 8, 8)
    with pytest.raises(SpecError, match=r"geom_xpos is float32 \[7, 5, 3\]; expected float64"):
        renderer.render(poses[0].astype(np.float32), *poses[1:])
    with pytest.raises(SpecError, match=r"cam_xmat is float64 \[6, 2, 9\].* \[7, 2, 9\]"):
        renderer.render(poses[0], poses[1], poses[2], poses[3][:6])
    with pytest.raises(SpecError, match=r"out is uint8 \[7, 1, 8, 8\].* uint8 \[7, 1, 8, 8, 3\]"):
        renderer.render(*poses, out=np.zeros((7, 1, 8, 8), np.uint8))
    with pytest.raises(SpecError, match="rows has step 2"):
        renderer.render(*poses, rows=slice(0, 7, 2))


def test_cameras_are_a_list_of_names():
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    with pytest.raises(
        SpecError, match="BatchRenderer: cameras is 'eye', expected a list of names"
    ):
        BatchRenderer(model, "eye", SIZE, SIZE)
