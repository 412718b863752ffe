import pytest

from vla_crl.errors import ConfigError
from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import LoRAConfig
from vla_crl.rollout.contexts import plan_contexts

NUM_ROWS = 1024
# Keys and values of 3 layers, 4 heads of width 32, for 2 cameras of 16 tokens, 16 words and the
# state, as float32; the mask, a position of 8 bytes, two features of width 128.
TOKENS = 2 * 16 + 16 + 1
CONTEXT_BYTES = 2 * 3 * 4 * TOKENS * 32 * 4 + TOKENS + 8 + 2 * 128 * 4
# Two pictures, eight numbers, 16 words and their mask.
SEEN_BYTES = 2 * 64 * 64 * 3 + 8 * 4 + 16 * 8 + 16


@pytest.fixture
def policy(untrained_policy):
    add_lora(untrained_policy, LoRAConfig())
    return untrained_policy


def test_contexts_of_a_frozen_backbone_are_stored_and_measured(policy):
    plan = plan_contexts(policy, NUM_ROWS, None, 8.0)
    assert (plan.contexts, plan.row_bytes) == ("stored", CONTEXT_BYTES)
    assert plan.num_bytes == NUM_ROWS * CONTEXT_BYTES
    mib = f"{CONTEXT_BYTES / 2**20:.3f} MiB are {CONTEXT_BYTES / 2**10:.0f} MiB"
    assert str(plan) == f"contexts stored (the backbone is frozen): 1024 contexts of {mib}"


def test_contexts_that_take_too_much_memory_are_computed_in_every_epoch(policy):
    plan = plan_contexts(policy, NUM_ROWS, None, 0.1)
    assert (plan.contexts, plan.row_bytes) == ("every_epoch", SEEN_BYTES)
    assert "(stored ones would take 0.1 GiB): 1024 observations of 0.024 MiB are 24" in str(plan)
    assert plan_contexts(policy, NUM_ROWS, "stored", 0.1).contexts == "stored"


def test_contexts_of_a_trained_backbone_are_computed_in_every_epoch(untrained_policy):
    add_lora(untrained_policy, LoRAConfig(site="both"))
    plan = plan_contexts(untrained_policy, NUM_ROWS, None, 8.0)
    assert (plan.contexts, plan.why) == ("every_epoch", "the backbone is trained")
    with pytest.raises(ConfigError, match="collector.contexts is 'stored', but weights of the ba"):
        plan_contexts(untrained_policy, NUM_ROWS, "stored", 8.0)


def test_what_helps_where_there_is_no_room_depends_on_what_is_kept(policy):
    assert plan_contexts(policy, NUM_ROWS, None, 8.0).advice == (
        "choose fewer collector.num_envs or collector.num_chunks, collector.contexts 'every_epoch'"
    )
    assert plan_contexts(policy, NUM_ROWS, "every_epoch", 8.0).advice.endswith("num_chunks")
