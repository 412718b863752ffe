"""Policies of other robots: any action, state and cameras, other images, other things."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_crl.contracts import ARM, Embodiment, Observation, check_fits
from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import build_policy, load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.normalization import NormStats
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.token_heads import LOSS_TERMS, SupervisedBatch
from vla_crl.testing import check_policy

PLANE = Embodiment(
    action=("x", "y", "turn", "gripper"), state=("x", "y", "angle"), cameras=("top",)
)
"""A robot with other numbers and one camera."""
THREE_EYES = replace(ARM, cameras=("left", "right", "hand"))


@pytest.fixture(params=[(PLANE, 32), (PLANE, 96), (THREE_EYES, 128)])
def other(request, make_policy) -> VLAPolicy:
    embodiment, image_size = request.param
    return make_policy(embodiment=embodiment, image_size=image_size)


def seen_by(policy: VLAPolicy, num: int = 3) -> Observation:
    rng, size = np.random.default_rng(0), policy.config.image_size
    shape = (num, len(policy.embodiment.cameras), size, size, 3)
    return Observation(
        images=rng.integers(0, 256, shape, dtype=np.uint8),
        state=rng.standard_normal((num, len(policy.embodiment.state))).astype(np.float32),
        instruction=("pick up the red cube",) * num,
    )


def batch_of(policy: VLAPolicy, num: int = 3) -> SupervisedBatch:
    robot, things = policy.embodiment, len(policy.config.things)
    cameras = len(robot.cameras)
    return SupervisedBatch(
        observation=policy.tokenize(seen_by(policy, num)),
        action_chunk=torch.rand(num, policy.config.action_horizon, len(robot.action)) * 2 - 1,
        action_mask=torch.ones(num, policy.config.action_horizon, dtype=torch.bool),
        has_action=torch.ones(num, dtype=torch.bool),
        named_uv=torch.rand(num, 2, cameras, 2),
        named_visible=torch.ones(num, 2, cameras, dtype=torch.bool),
        object_uv=torch.rand(num, cameras, things, 2),
        object_visible=torch.ones(num, cameras, things, dtype=torch.bool),
        has_grounding=torch.ones(num, dtype=torch.bool),
    )


def test_a_policy_of_any_robot_keeps_the_contract(other):
    check_policy(other, seen_by(other))
    check_policy(other, other.example_observation())


def test_a_policy_of_any_robot_learns_every_loss(other):
    losses = other.losses(batch_of(other))
    assert losses.keys() == LOSS_TERMS
    torch.stack([*losses.values()]).sum().backward()
    without = {n.split(".")[0] for n, p in other.named_parameters() if p.grad is None}
    assert without == {"value_head"}


def test_a_policy_of_any_robot_can_be_saved_with_adapters(other, tmp_path):
    add_lora(other, LoRAConfig(rank=2, site="both"))
    save_policy(other, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.embodiment == other.embodiment
    assert loaded.config == other.config
    before, after = (policy.encode(seen_by(other)) for policy in (other, loaded))
    assert torch.equal(before.keys, after.keys)


def test_more_pixels_make_more_tokens(make_policy):
    # 96 / (8 pixels a patch * 2 patches a token) = 6 tokens a side.
    assert make_policy(image_size=96).backbone.sizes.tokens_per_side == 6


def test_a_policy_without_things_still_learns(make_policy):
    policy = make_policy(things=())
    losses = policy.losses(batch_of(policy))
    assert losses["presence"].item() == losses["offset"].item() == 0.0
    torch.stack([*losses.values()]).sum().backward()


def test_a_policy_needs_an_embodiment(make_policy):
    with pytest.raises(ConfigError, match="embodiment is missing: a policy is built for one robot"):
        make_policy(embodiment=None)


def test_a_preset_without_robot_and_things_takes_those_of_the_suite():
    policy = build_policy("tiny", embodiment=PLANE, things=["cup", "saucer"])
    assert policy.embodiment == policy.config.embodiment == PLANE
    assert policy.config.things == ("cup", "saucer")
    with pytest.raises(ConfigError, match=r"tiny\.toml: embodiment is missing"):
        build_policy("tiny")


def test_what_a_preset_says_of_robot_and_things_remains(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text(
        'vocabulary = ["pick"]\nthings = ["cup"]\n'
        '[embodiment]\naction = ["x"]\nstate = ["x"]\ncameras = ["top"]\n'
    )
    policy = build_policy(preset, embodiment=PLANE, things=["saucer"])
    assert policy.embodiment == Embodiment(action=("x",), state=("x",), cameras=("top",))
    assert policy.config.things == ("cup",)


def test_the_shipped_checkpoints_know_their_robots():
    tiny, metaworld = load_policy("tiny"), load_policy("tiny_metaworld")
    check_fits(tiny.embodiment, ARM, "test")
    assert metaworld.embodiment == replace(ARM, cameras=("agentview", "gripperPOV"))
    assert metaworld.config.things == ("object", "goal")
    with pytest.raises(ConfigError, match=r"here: cameras\[1\] of the suite is 'eye_in_hand'"):
        check_fits(metaworld.embodiment, ARM, "here")


def test_an_observation_of_another_robot_is_refused(make_policy):
    policy = make_policy(embodiment=PLANE)
    with pytest.raises(SpecError, match="got 2 cameras, expected 1: top"):
        policy.tokenize(seen_by(make_policy()))
    with pytest.raises(SpecError, match="got 2 cameras, expected 1: top"):
        check_policy(policy, seen_by(make_policy()))


def test_norm_stats_have_as_many_numbers_as_the_robot(make_policy):
    stats: NormStats = make_policy(embodiment=PLANE).norm_stats
    assert (len(stats.state_mean), len(stats.action_mean)) == (3, 4)


def test_a_config_without_an_embodiment_is_a_preset():
    assert PolicyConfig(vocabulary=("pick",)).embodiment is None
