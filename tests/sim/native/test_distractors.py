"""Objects that a variation sends away."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import mujoco
import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.grounding import ground
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.variation import VariationConfig

NewSim = Callable[..., VectorSim]
SLOTS = np.arange(12)
TWO_AWAY = VariationConfig(absent_distractors=(2, 2))


def started(new_sim: NewSim, task: int = 0, **settings) -> VectorSim:
    sim = new_sim(len(SLOTS), **settings)
    sim.reset(SLOTS, tasks=[task] * len(SLOTS), state_ids=SLOTS)
    return sim


def moved(varied: VectorSim, nominal: VectorSim) -> np.ndarray:
    """Return [slots, things] whether a thing is elsewhere."""
    there, before = varied.thing_positions(SLOTS), nominal.thing_positions(SLOTS)
    return np.any((there != before) & ~np.isnan(before), axis=-1)


def test_absent_distractors_are_in_no_picture_and_stay_away(new_sim: NewSim):
    nominal, varied = started(new_sim), started(new_sim, variation=TWO_AWAY)
    is_away, visible = moved(varied, nominal), ground(varied, SLOTS).visible
    assert is_away.sum(axis=1).tolist() == [2] * len(SLOTS)
    assert is_away.any(axis=0).sum() == 4  # each of the others in some episode
    named = [varied.suite.things.index(name) for name in ("red cube", "basket")]
    assert not is_away[:, named].any()
    assert ground(nominal, SLOTS).visible[:, 0][is_away].all()
    assert not (visible & is_away[:, None]).any()
    before = varied.thing_positions(SLOTS)
    varied.step_chunk(np.zeros((len(SLOTS), 20, 7)))
    assert np.allclose(varied.thing_positions(SLOTS)[is_away], before[is_away], atol=1e-3)


def test_a_picture_changes_only_where_the_distractors_were(new_sim: NewSim):
    nominal, varied = started(new_sim), started(new_sim, variation=TWO_AWAY)
    changed = np.any(nominal.observe().images[:, 0] != varied.observe().images[:, 0], axis=-1)
    assert np.all(changed.any(axis=(1, 2)))
    assert changed.mean() < 0.1


def test_who_was_away_in_the_last_episode_is_back_in_the_next(new_sim: NewSim):
    fresh, used = started(new_sim, variation=TWO_AWAY), started(new_sim, variation=TWO_AWAY)
    used.reset(SLOTS, tasks=[0] * len(SLOTS), state_ids=SLOTS + len(SLOTS))
    used.reset(SLOTS, tasks=[0] * len(SLOTS), state_ids=SLOTS)
    assert np.array_equal(used.get_states()["physics"], fresh.get_states()["physics"])


def test_what_the_goal_names_is_never_away_however_many_should_be(new_sim: NewSim):
    suite, nine = load_suite("tabletop_spatial"), VariationConfig(absent_distractors=(9, 9))
    for name, num_others in (("between_cylinders", 0), ("left_of_blue_cylinder", 1)):
        task = [task.name for task in suite.tasks].index(name)
        nominal = started(new_sim, task, suite=suite)
        varied = started(new_sim, task, suite=suite, variation=nine)
        assert moved(varied, nominal).sum(axis=1).tolist() == [num_others] * len(SLOTS)


def test_absent_objects_need_a_ground(new_sim: NewSim, suite: Suite):
    scene = suite.scenes[0]
    model = copy(scene.model)
    model.geom_type[model.geom("table").id] = mujoco.mjtGeom.mjGEOM_BOX
    floating = replace(suite, scenes=(replace(scene, model=model), *suite.scenes[1:]))
    message = "'red_cube_in_basket': absent_distractors needs a geom of type plane"
    with pytest.raises(ConfigError, match=message):
        new_sim(1, suite=floating, variation=TWO_AWAY)


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1])
def test_great_seeds_vary_too(new_sim: NewSim, seed: int):
    noise = VariationConfig(image_noise=(0.1, 0.1), seed=seed)
    images = started(new_sim, variation=noise).observe().images
    assert not np.array_equal(images, started(new_sim).observe().images)
