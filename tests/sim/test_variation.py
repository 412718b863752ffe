"""What an episode draws; `test_variation_effects` shows what the draws do."""

import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from vla_crl.catalog import catalog_dir
from vla_crl.config import from_mapping
from vla_crl.errors import ConfigError
from vla_crl.sim.variation import MAX_LATENCY, Draw, VariationConfig, draw

NUM_OBJECTS, NUM_DISTRACTORS = 5, 4
BOX = ((-0.1, -0.2, -0.3), (0.3, 0.2, 0.1))
WIDE: dict[str, Any] = {
    "camera_shift_m": BOX,
    "camera_turn_rad": BOX,
    "light_gain": (0.5, 1.5),
    "light_turn_rad": BOX,
    "colour_shift": BOX,
    "materials": ("checks", "tiles", "speckles"),
    "base_shift_m": BOX,
    "mass_gain": (0.5, 2.0),
    "friction_gain": (0.3, 1.2),
    "absent_distractors": (2, 2),
    "action_latency": (1, 4),
    "image_noise": (0.0, 0.1),
    "state_noise": (0.0, 0.01),
    "paraphrase": True,
}
"""A range for every field but the seed."""
DRAWN = dict(zip(WIDE, (
    "camera_shift", "camera_turn", "light_gain", "light_turn", "colour_shift", "material",
    "base_shift", "mass_gain", "friction_gain", "absent", "latency", "image_noise", "state_noise",
    "paraphrase",
), strict=True))  # fmt: skip
"""What the fields are called in a draw."""


def values(drawn: Draw) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in drawn._asdict().items()}


def draws(config: VariationConfig, num: int) -> dict[str, np.ndarray]:
    rows = [draw(config, state_id, NUM_OBJECTS, NUM_DISTRACTORS) for state_id in range(num)]
    return {name: np.array([getattr(row, name) for row in rows]) for name in Draw._fields}


def test_every_field_is_drawn():
    assert [*WIDE, "seed"] == [field.name for field in fields(VariationConfig)]
    assert set(DRAWN.values()) == set(Draw._fields)


def test_the_readme_explains_every_field():
    text = (catalog_dir("envs") / "README.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `(\w+)` \| .* \| .*\|$", text[text.index("## Variations") :], re.M)
    assert explained == [field.name for field in fields(VariationConfig)]


def test_by_default_nothing_varies():
    for state_id in (0, 7):
        drawn = draw(VariationConfig(), state_id, NUM_OBJECTS, NUM_DISTRACTORS)
        for name in ("camera_shift", "camera_turn", "light_turn", "colour_shift", "base_shift"):
            assert not getattr(drawn, name).any()
        assert drawn.mass_gain.tolist() == [1.0] * NUM_OBJECTS
        assert (drawn.light_gain, drawn.friction_gain) == (1.0, 1.0)
        assert (drawn.latency, drawn.image_noise, drawn.state_noise) == (0, 0.0, 0.0)
        assert (drawn.material, drawn.paraphrase) == (None, None)
    assert not VariationConfig(seed=3).varies
    assert all(VariationConfig(**{name: value}).varies for name, value in WIDE.items())


def test_the_same_seed_and_state_give_the_same_draw():
    config = VariationConfig(**WIDE)
    one, again = (
        draw(config, 3, NUM_OBJECTS, NUM_DISTRACTORS),
        draw(VariationConfig(**WIDE), 3, NUM_OBJECTS, NUM_DISTRACTORS),
    )
    for name, value in values(one).items():
        assert np.array_equal(value, values(again)[name])


@pytest.mark.parametrize(("seed", "state_id"), [(1, 3), (0, 4), (3, 0)])
def test_another_seed_or_state_gives_another_draw(seed: int, state_id: int):
    one = values(draw(VariationConfig(**WIDE), 3, NUM_OBJECTS, NUM_DISTRACTORS))
    other = values(draw(VariationConfig(**WIDE, seed=seed), state_id, NUM_OBJECTS, NUM_DISTRACTORS))
    for name in set(one) - {"absent", "latency", "material"}:  # of which there are only a few
        assert not np.any(one[name] == other[name]), name


@pytest.mark.parametrize("field", WIDE)
def test_the_draw_of_one_field_does_not_change_anothers(field: str):
    everything = VariationConfig(**WIDE)
    others = VariationConfig(**{name: value for name, value in WIDE.items() if name != field})
    for state_id in range(20):
        one = values(draw(everything, state_id, NUM_OBJECTS, NUM_DISTRACTORS))
        other = values(draw(others, state_id, NUM_OBJECTS, NUM_DISTRACTORS))
        for name in set(one) - {DRAWN[field]}:
            assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize(
    "field", sorted(WIDE.keys() - {"absent_distractors", "materials", "paraphrase"})
)
def test_draws_fill_their_range_evenly(field: str):
    drawn = draws(VariationConfig(**WIDE), 2000)[DRAWN[field]]
    low, high = np.asarray(WIDE[field], float)
    assert np.all((drawn >= low) & (drawn <= high))
    if field == "action_latency":
        shares = [np.mean(drawn == steps) for steps in (1, 2, 3, 4)]
        assert np.allclose(shares, 0.25, atol=0.04)  # four standard deviations of 2000 draws
        return
    part = (drawn - low) / (high - low)
    assert np.allclose(part.mean(axis=0), 0.5, atol=0.03)  # sqrt(1 / 12 / 2000) = 0.0065
    assert np.allclose(part.std(axis=0), 12**-0.5, atol=0.015)


def test_materials_are_drawn_equally_often():
    shown = draws(VariationConfig(**WIDE), 2000)["material"]
    shares = [np.mean(shown == name) for name in WIDE["materials"]]
    assert np.allclose(shares, 1 / 3, atol=0.04)  # four standard deviations


def test_distractors_are_away_equally_often_and_so_are_their_numbers():
    config = VariationConfig(absent_distractors=(0, 3))
    absent = [
        draw(config, state_id, NUM_OBJECTS, NUM_DISTRACTORS).absent for state_id in range(2000)
    ]
    shares = np.bincount([len(away) for away in absent]) / 2000
    assert np.allclose(shares, [0.25] * 4, atol=0.04)  # four standard deviations
    shares = np.bincount(np.concatenate(absent)) / 2000
    assert np.allclose(shares, [1.5 / 4] * NUM_DISTRACTORS, atol=0.05)
    assert all(len(set(away)) == len(away) for away in absent)


def test_objects_and_parts_of_the_picture_draw_apart():
    drawn = draw(VariationConfig(**WIDE), 0, NUM_OBJECTS, NUM_DISTRACTORS)
    assert len(set(drawn.mass_gain)) == NUM_OBJECTS
    assert drawn.colour_shift.shape == (2, 3)
    assert len(set(drawn.colour_shift.ravel())) == 6


def test_a_fixed_range_is_its_value():
    config = VariationConfig(
        light_gain=(0.7, 0.7), action_latency=(3, 3), base_shift_m=((0.1, 0, 0), (0.1, 0, 0))
    )
    drawn = draw(config, 9, NUM_OBJECTS, NUM_DISTRACTORS)
    assert (drawn.light_gain, drawn.latency) == (0.7, 3)
    assert drawn.base_shift.tolist() == [0.1, 0.0, 0.0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"light_gain": (1.0, 0.5)}, r"light_gain = \(1.0, 0.5\), expected low before high"),
        (
            {"camera_shift_m": ((0.0, 0.1, 0.0), (0.0, 0.0, 0.0))},
            "camera_shift_m = .*, expected low before high",
        ),
        ({"friction_gain": (-0.5, 1.0)}, r"friction_gain\[0\] = -0.5, expected at least 0"),
        ({"image_noise": (-0.1, 0.1)}, r"image_noise\[0\] = -0.1, expected at least 0"),
        ({"action_latency": (-1, 0)}, r"action_latency\[0\] = -1, expected at least 0"),
        (
            {"action_latency": (0, MAX_LATENCY + 1)},
            r"action_latency\[1\] = 9, expected at least 0 and at most 8",
        ),
        ({"state_noise": (0.0, 0.2)}, r"state_noise\[1\] = 0.2, .*at most 0.1"),
        ({"image_noise": (2.0, 2.0)}, r"image_noise\[0\] = 2.0, .*at most 1"),
        (
            {"base_shift_m": ((-5, 0, 0), (0, 0, 0))},
            r"base_shift_m\[0\]\[0\] = -5.0, expected at least -1",
        ),
        ({"mass_gain": (0.0, 1.0)}, r"mass_gain\[0\] = 0.0, expected more than 0"),
        ({"state_noise": (0.0, float("inf"))}, r"state_noise\[1\] = inf, expected a finite number"),
        ({"light_gain": (float("nan"), 1.0)}, r"light_gain\[0\] = nan, expected a finite number"),
        (
            {"light_turn_rad": ((0.0, 0.0, 0.0), (0.0, 0.0, float("inf")))},
            r"light_turn_rad\[1\]\[2\] = inf, expected a finite number",
        ),
        ({"absent_distractors": 2}, r"absent_distractors = 2 \(int\), expected a list of int"),
        ({"action_latency": (0.5, 2)}, r"action_latency\[0\] = 0.5 \(float\), expected int"),
        ({"light_gain": ("a", "b")}, r"light_gain\[0\] = 'a' \(str\), expected float"),
        ({"materials": "checks"}, r"materials = 'checks' \(str\), expected a list of str"),
        ({"materials": (1,)}, r"materials\[0\] = 1 \(int\), expected str"),
        ({"paraphrase": "no"}, r"paraphrase = 'no' \(str\), expected bool"),
        ({"seed": 1.5}, r"seed = 1.5 \(float\), expected int"),
        ({"light_gain": [2.0, 1.0]}, "light_gain = .*, expected low before high"),
        ({"seed": -1}, "seed = -1, expected at least 0 and at most 4294967295"),
        ({"seed": 2**32}, "seed = 4294967296, expected at least 0 and at most 4294967295"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(setting: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        VariationConfig(**setting)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"light_gain": [1.0]}, "file: light_gain has 1 entries, expected 2"),
        ({"light_gain": 1.0}, "file: light_gain = 1.0 .float., expected"),
        ({"action_latency": [0.5, 1]}, "file: action_latency"),
        ({"camera_shift_m": [[0.0, 0.0], [0.0, 0.0]]}, "file: camera_shift_m"),
        ({"latency": [0, 1]}, "file: unknown key 'latency' .* Did you mean 'action_latency'"),
    ],
)
def test_a_range_of_another_shape_is_refused(content: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        from_mapping(VariationConfig, content, "file")
