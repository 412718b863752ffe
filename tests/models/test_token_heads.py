import math
from dataclasses import replace

import pytest
import torch

from vla_crl.models.token_heads import GroundingHeads, TokenHeads, cross_entropy, to_bins


def zeroed(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)


def make_token_heads() -> TokenHeads:
    return TokenHeads(
        16,
        num_action_tokens=2,
        numbers_per_token=28,
        num_action_bins=32,
        num_position_bins=8,
        num_cameras=2,
    )


def test_bins_cover_the_interval_evenly_and_include_its_end():
    assert to_bins(torch.tensor([0.0, 0.249, 0.25, 0.5, 0.99, 1.0]), 4).tolist() == [
        0, 0, 1, 2, 3, 3,
    ]  # fmt: skip


def test_each_query_answers_for_its_part_of_the_chunk():
    heads = make_token_heads()
    hidden = torch.randn(1, 2, 16)
    before = heads.action_logits(hidden, 7)
    assert before.shape == (1, 8, 7, 32)
    hidden[:, 1] += 1.0
    changed = (heads.action_logits(hidden, 7) != before).any(dim=-1).any(dim=-1)
    assert changed.tolist() == [[False] * 4 + [True] * 4]


def test_indifferent_heads_have_the_entropy_of_the_uniform_distribution(batch):
    heads, grounding = make_token_heads(), GroundingHeads(16, 2, 3)
    zeroed(heads)
    zeroed(grounding)
    hidden, image_tokens = torch.randn(4, 2, 16), torch.randn(4, 2, 4, 16)
    assert heads.action_loss(hidden, batch).item() == pytest.approx(math.log(32.0))
    assert heads.answer_loss(torch.randn(4, 16), batch).item() == pytest.approx(math.log(8.0))
    assert grounding.pointer_loss(image_tokens, batch).item() == pytest.approx(math.log(4.0))
    assert grounding.presence_loss(image_tokens, batch).item() == pytest.approx(math.log(2.0))


def test_action_loss_reads_only_valid_actions(batch):
    heads, hidden = make_token_heads(), torch.randn(4, 2, 16)
    before = heads.action_loss(hidden, batch)
    chunk = batch.action_chunk.clone()
    chunk[1] = 0.9  # a question
    chunk[3, 1:] = 0.9  # past the end of the episode
    assert torch.equal(heads.action_loss(hidden, replace(batch, action_chunk=chunk)), before)
    chunk[3, 0] = -chunk[3, 0]
    assert not torch.equal(heads.action_loss(hidden, replace(batch, action_chunk=chunk)), before)


def test_presence_label_marks_the_token_that_holds_the_object(batch):
    # A 2 x 2 grid: (u, v) = (.75, .25) lies right and up, token 1.
    grounding = GroundingHeads(1, 2, 1)
    labels = replace(
        batch,
        object_uv=torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 2),
        object_visible=torch.ones(1, 1, 1, dtype=torch.bool),
        has_grounding=torch.ones(1, dtype=torch.bool),
    )
    with torch.no_grad():
        grounding.presence.weight.fill_(1.0)
        grounding.presence.bias.zero_()
    tokens = torch.full((1, 1, 4, 1), -20.0)
    tokens[:, :, 1] = 20.0
    assert grounding.presence_loss(tokens, labels).item() == pytest.approx(0.0, abs=1e-6)
    hidden = replace(labels, object_visible=torch.zeros(1, 1, 1, dtype=torch.bool))
    # Only token 1 is wrong, by 20 nats, out of four.
    assert grounding.presence_loss(tokens, hidden).item() == pytest.approx(5.0)


def test_offset_is_measured_from_the_centre_of_the_holding_token(batch):
    # v = .9 of two rows: 1.8, second row, .8 - .5 = .3 below its centre; u = .25: .5 - .5 = 0.
    grounding = GroundingHeads(1, 2, 1)
    labels = replace(
        batch,
        object_uv=torch.tensor([0.25, 0.9]).reshape(1, 1, 1, 2),
        object_visible=torch.ones(1, 1, 1, dtype=torch.bool),
        has_grounding=torch.ones(1, dtype=torch.bool),
    )
    with torch.no_grad():
        grounding.offset.weight.copy_(torch.tensor([[0.0], [1.0]]))
        grounding.offset.bias.zero_()
    tokens = torch.full((1, 1, 4, 1), 99.0)
    tokens[:, :, 2] = 0.3
    assert grounding.offset_loss(tokens, labels).item() == pytest.approx(0.0, abs=1e-6)
    tokens[:, :, 2] = 0.5
    assert grounding.offset_loss(tokens, labels).item() == pytest.approx(0.02, abs=1e-6)


def grounding_losses(batch) -> list[torch.Tensor]:
    torch.manual_seed(0)
    heads, grounding = make_token_heads(), GroundingHeads(16, 2, 3)
    hidden, image_tokens = torch.randn(4, 16), torch.randn(4, 2, 4, 16)
    return [
        heads.answer_loss(hidden, batch),
        grounding.presence_loss(image_tokens, batch),
        grounding.offset_loss(image_tokens, batch),
        grounding.pointer_loss(image_tokens, batch),
        grounding.named_offset_loss(image_tokens, batch),
    ]


def test_rows_without_grounding_teach_nothing_about_where_things_are(batch):
    has_grounding = torch.tensor([True, False, True, False])
    before = grounding_losses(replace(batch, has_grounding=has_grounding))
    scribbled = replace(
        batch,
        has_grounding=has_grounding,
        named_uv=torch.where(has_grounding[:, None, None, None], batch.named_uv, 0.9),
        named_visible=batch.named_visible | ~has_grounding[:, None, None],
        object_uv=torch.where(has_grounding[:, None, None, None], batch.object_uv, 0.9),
        object_visible=batch.object_visible & has_grounding[:, None, None],
    )
    assert all(map(torch.equal, before, grounding_losses(scribbled)))
    assert not any(map(torch.equal, before, grounding_losses(batch)))


def test_presence_is_the_mean_over_the_rows_with_grounding(batch):
    torch.manual_seed(0)
    grounding, tokens = GroundingHeads(16, 2, 3), torch.randn(4, 2, 4, 16)
    known = replace(batch, has_grounding=torch.tensor([True, False, True, False]))
    rows = torch.tensor([0, 2])
    torch.testing.assert_close(
        grounding.presence_loss(tokens, known), grounding.presence_loss(tokens[rows], known[rows])
    )


def test_a_batch_without_any_grounding_has_losses_of_zero(batch):
    nothing = replace(batch, has_grounding=torch.zeros(4, dtype=torch.bool))
    assert [loss.item() for loss in grounding_losses(nothing)] == [0.0] * 5


def test_heads_without_objects_have_losses_of_zero(batch):
    grounding, tokens = GroundingHeads(16, 2, 0), torch.randn(4, 2, 4, 16)
    empty = replace(
        batch, object_uv=batch.object_uv[:, :, :0], object_visible=batch.object_visible[:, :, :0]
    )
    for loss in (grounding.presence_loss(tokens, empty), grounding.offset_loss(tokens, empty)):
        loss.backward()
        assert loss.item() == 0.0


def test_loss_without_any_valid_label_is_zero():
    labels = torch.zeros(3, dtype=torch.int64)
    valid = torch.zeros(3, dtype=torch.bool)
    assert cross_entropy(torch.randn(3, 5), labels, valid).item() == 0.0
