import numpy as np
import pytest
import torch

from vla_crl.contracts import Observation
from vla_crl.errors import ConfigError
from vla_crl.export.programs import (
    Act,
    Encode,
    Programs,
    export_programs,
    largest_difference,
    measure_latency,
)
from vla_crl.models.checkpoint import load_policy
from vla_crl.models.heads import flow

NAMES = ("encode", "act", "sample")
SENTENCES = ("pick up the red cube and place it in the basket", "pick up", "the basket")


@pytest.fixture(scope="module")
def policy(exported):
    return load_policy(exported)


@pytest.fixture(scope="module")
def programs(exported, policy):
    """The programs as they lie on disk, beside the policy that lies there too."""
    kept = {name: torch.export.load(exported / f"{name}.pt2") for name in NAMES}
    eager = {"encode": Encode(policy), "act": Act(policy), "sample": Act(policy)}
    return Programs(kept, eager, largest_difference(policy, kept, eager))


@pytest.fixture(scope="module")
def loaded(programs):
    return {name: program.module() for name, program in programs.exported.items()}


def observe(policy, rows: int):
    random = np.random.default_rng(0)
    size = policy.config.image_size
    return policy.tokenize(
        Observation(
            random.integers(0, 256, (rows, 2, size, size, 3), dtype=np.uint8),
            random.standard_normal((rows, 8)).astype(np.float32),
            tuple(SENTENCES[row % 3] for row in range(rows)),
        )
    )


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_programs_from_disk_act_as_the_policy_for_any_number_of_rows(policy, loaded, rows):
    seen = observe(policy, rows)
    with torch.no_grad():
        context = policy.encode(seen)
        expected = policy.act(context, deterministic=True)
    found = loaded["encode"](*seen.flatten().values())
    actions, value = loaded["act"](*found, torch.zeros(rows, 2, 7))
    torch.testing.assert_close(actions, expected.actions, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(value, expected.value, rtol=0.0, atol=1e-5)
    valid = context.padding_mask[:, None, None, :, None]
    for own, other in zip(found[:2], (context.keys, context.values), strict=True):
        torch.testing.assert_close(own * valid, other * valid, rtol=0.0, atol=1e-5)
    assert torch.equal(found[2], context.padding_mask)
    assert torch.equal(found[3], context.next_position)
    torch.testing.assert_close(found[4], context.features, rtol=0.0, atol=1e-5)


def test_sampling_takes_what_is_random_from_outside(policy, loaded):
    seen, generator = observe(policy, 4), torch.Generator()
    with torch.no_grad():
        context = policy.encode(seen)
        expected = policy.act(context, deterministic=False, generator=generator.manual_seed(1))
    draws = flow.draw(policy.config.head, (4, 2, 7), generator.manual_seed(1), deterministic=False)
    found = loaded["encode"](*seen.flatten().values())
    actions, _ = loaded["sample"](*found, draws.start, draws.step, draws.noise)
    torch.testing.assert_close(actions, expected.actions, rtol=0.0, atol=1e-5)
    mode, _ = loaded["act"](*found, draws.start)
    assert (actions - mode).abs().max() > 1e-3


def test_programs_hold_the_weights_they_need_and_no_others(policy, programs):
    def count(tensors) -> int:
        return sum(tensor.numel() for tensor in tensors)

    encode, act = (count(programs.exported[name].state_dict.values()) for name in NAMES[:2])
    stats = count(policy.norm_stats.state_dict().values())  # both need them
    others = count([*policy.token_heads.parameters(), *policy.grounding.parameters()])
    assert encode + act - stats == count(policy.state_dict().values()) - others


def test_latency_has_a_row_for_each_program_and_batch_size(policy, programs, monkeypatch):
    monkeypatch.setattr("vla_crl.export.programs.NUM_REPEATS", 1)
    rows = measure_latency(policy, programs)
    assert [(row["program"], row["batch"]) for row in rows] == [
        (program, size) for size in (1, 64) for program in ("encode", "act", "sample")
    ]
    assert all(row["eager_ms"] > 0 and row["exported_ms"] > 0 for row in rows)


def test_programs_that_act_otherwise_are_refused(base, policy, programs):
    assert programs.difference < 1e-5
    before = load_policy(base)  # of which the program's is a trained one
    theirs = {"act": Act(before), "sample": Act(before)}
    with pytest.raises(ConfigError, match=r"actions of torch's programs differ .* by .*e-0"):
        largest_difference(policy, programs.exported, theirs)


def test_what_torch_cannot_export_is_told_with_its_reason(policy, monkeypatch):
    embed = policy.backbone.embed_images
    monkeypatch.setattr(  # numbers decide what is computed
        policy.backbone, "embed_images", lambda x: embed(x) if int(x.sum()) > 0 else embed(x) + 1
    )
    with pytest.raises(
        ConfigError, match="torch cannot export 'encode' .*leave out --torch-export"
    ):
        export_programs(policy)
