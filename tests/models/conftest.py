from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_crl.contracts import Observation
from vla_crl.models.expert import ExpertConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.token_heads import SupervisedBatch
from vla_crl.models.vlm import BackboneConfig

BACKBONE = BackboneConfig(
    image_size=32,
    patch_size=8,
    vision_width=12,
    num_vision_heads=2,
    vision_mlp_width=16,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=24,
    initializer_range=0.3,
)
CONFIG = PolicyConfig(
    vocabulary=("pick", "up", "the", "red", "blue", "cube", "where", "is"),
    max_words=6,
    backbone=BACKBONE,
    expert=ExpertConfig(width=12, num_heads=2, mlp_width=16),
    num_objects=3,
    value_width=8,
)
PolicyFactory = Callable[..., VLAPolicy]


@pytest.fixture(scope="session")
def make_policy() -> PolicyFactory:
    """Build a small policy with reproducible weights; keywords replace settings."""

    def build(*, backbone: dict[str, int] | None = None, **settings: object) -> VLAPolicy:
        torch.manual_seed(0)
        config = replace(CONFIG, backbone=replace(BACKBONE, **(backbone or {})), **settings)
        policy = VLAPolicy(config)
        # A value head that starts at 0 would hide mistakes.
        torch.nn.init.normal_(policy.value_head.output.weight)
        return policy

    return build


@pytest.fixture
def policy(make_policy: PolicyFactory) -> VLAPolicy:
    return make_policy()


@pytest.fixture
def observation() -> Observation:
    rng = np.random.default_rng(0)
    return Observation(
        images=rng.integers(0, 256, (4, 2, 32, 32, 3), dtype=np.uint8),
        state=rng.standard_normal((4, 8)).astype(np.float32),
        instruction=("pick up the red cube", "where is the blue cube", "pick up", "the cube"),
    )


@pytest.fixture
def batch(policy: VLAPolicy, observation: Observation) -> SupervisedBatch:
    generator = torch.Generator().manual_seed(0)
    token_ids, word_mask = policy.tokenizer.encode(observation.instruction)
    return SupervisedBatch(
        images=torch.from_numpy(observation.images),
        state=torch.from_numpy(observation.state),
        token_ids=token_ids,
        word_mask=word_mask,
        action_chunk=torch.rand(4, 8, 7, generator=generator) * 2.0 - 1.0,
        action_mask=torch.arange(8).expand(4, 8) < torch.tensor([[8], [8], [5], [1]]),
        has_action=torch.tensor([True, False, True, True]),
        named_uv=torch.rand(4, 2, 2, 2, generator=generator),
        named_visible=torch.rand(4, 2, 2, generator=generator) < 0.7,
        object_uv=torch.rand(4, 2, 3, 2, generator=generator),
        object_visible=torch.rand(4, 2, 3, generator=generator) < 0.7,
    )
