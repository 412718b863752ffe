import pytest
import torch

from vla_crl.models.context import Context


def make_context() -> tuple[Context, torch.Tensor]:
    leaf = torch.arange(12.0).reshape(1, 1, 2, 3, 2).requires_grad_()
    context = Context(
        keys=leaf * 2.0,
        values=leaf * 3.0,
        padding_mask=torch.ones(1, 3, dtype=torch.bool),
        next_position=torch.tensor([3]),
        features=torch.zeros(1, 4),
    )
    return context, leaf


# d(sum of keys + sum of values)/d(leaf) = 2 + 3 per entry without insulation.
@pytest.mark.parametrize(("insulation", "gradient"), [("none", 5.0), (0.25, 1.25)])
def test_insulation_passes_or_scales_the_gradient(insulation, gradient):
    context, leaf = make_context()
    insulated = context.insulate(insulation)
    (insulated.keys.sum() + insulated.values.sum()).backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.full_like(leaf, gradient))


@pytest.mark.parametrize("insulation", ["full", "none", 0.25])
def test_insulation_leaves_values_unchanged(insulation):
    context, _ = make_context()
    insulated = context.insulate(insulation)
    assert torch.equal(insulated.keys, context.keys)
    assert torch.equal(insulated.values, context.values)


def test_full_insulation_cuts_the_graph():
    context, _ = make_context()
    insulated = context.insulate("full")
    assert not insulated.keys.requires_grad
    assert not insulated.values.requires_grad


def test_a_compact_context_ends_with_its_longest_row():
    keys = torch.arange(24.0).reshape(2, 1, 2, 3, 2)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    context = Context(keys, keys + 1.0, mask, mask.sum(dim=1), torch.zeros(2, 4))
    compact = context.compact()
    assert torch.equal(compact.keys, keys[..., :2, :])
    assert torch.equal(compact.values, keys[..., :2, :] + 1.0)
    assert compact.padding_mask.tolist() == [[True, False], [True, True]]
    assert compact.keys.data_ptr() == keys.data_ptr()
