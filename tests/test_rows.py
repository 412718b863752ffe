from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vla_crl.errors import SpecError
from vla_crl.rows import Rows


@dataclass(frozen=True)
class Inner(Rows):
    number: Tensor


@dataclass(frozen=True)
class Outer(Rows):
    number: Tensor
    inner: Inner


@dataclass(frozen=True)
class Sparse(Rows):
    first: Tensor | None
    inner: Inner | None
    last: Tensor


def make(*numbers: float) -> Outer:
    return Outer(torch.tensor(numbers), Inner(torch.tensor(numbers) * 10.0))


def test_rows_are_chosen_by_slice_mask_numbers_and_single_number():
    rows = make(1.0, 2.0, 3.0)
    assert len(rows) == 3
    assert rows[1:].inner.number.tolist() == [20.0, 30.0]
    assert rows[torch.tensor([2, 0])].inner.number.tolist() == [30.0, 10.0]
    assert rows[torch.tensor([True, False, True])].number.tolist() == [1.0, 3.0]
    assert rows[[0, 0]].number.tolist() == [1.0, 1.0]
    assert rows[-1].number.tolist() == [3.0]
    assert rows[1].number.tolist() == [2.0]


def test_cat_joins_nested_records():
    joined = Outer.cat([make(1.0), make(2.0, 3.0)])
    assert joined.number.tolist() == [1.0, 2.0, 3.0]
    assert joined.inner.number.tolist() == [10.0, 20.0, 30.0]


def test_copy_into_writes_chosen_rows_of_allocated_storage_in_place():
    buffer = make(1.0).allocate(4)
    address = buffer.inner.number.data_ptr()
    make(7.0, 8.0).copy_into(buffer, torch.tensor([3, 1]))
    assert buffer.number.tolist() == [0.0, 8.0, 0.0, 7.0]
    assert buffer.inner.number.tolist() == [0.0, 80.0, 0.0, 70.0]
    assert buffer.inner.number.data_ptr() == address


def test_detach_cuts_every_tensor_from_the_graph():
    number = torch.ones(2, requires_grad=True)
    rows = Outer(number * 2.0, Inner(number * 3.0)).detach()
    assert not rows.number.requires_grad
    assert not rows.inner.number.requires_grad


def test_a_field_may_be_none_and_stays_so():
    rows = Sparse(None, Inner(torch.tensor([1.0, 2.0])), torch.tensor([3.0, 4.0]))
    assert len(rows) == 2
    assert rows[1] == Sparse(None, rows[1].inner, rows[1].last)
    joined = Sparse.cat([rows, rows[:1]])
    assert joined.first is None
    assert joined.last.tolist() == [3.0, 4.0, 3.0]
    buffer = rows.allocate(3)
    rows.copy_into(buffer, slice(1, 3))
    assert buffer.first is None
    assert buffer.last.tolist() == [0.0, 3.0, 4.0]
    empty = Sparse(None, None, torch.zeros(1))
    assert Sparse.cat([empty, empty]).inner is None


def test_rows_are_flat_tensors_by_name_and_back():
    rows = make(1.0, 2.0)
    flat = rows.flatten()
    assert {name: tensor.tolist() for name, tensor in flat.items()} == {
        "number": [1.0, 2.0],
        "inner.number": [10.0, 20.0],
    }
    again = make(0.0).unflatten(flat)
    assert again.inner.number.tolist() == [10.0, 20.0]
    sparse = Sparse(None, rows.inner, rows.number)
    assert list(sparse.flatten()) == ["inner.number", "last"]
    assert sparse.unflatten(sparse.flatten()).first is None


def test_flat_tensors_of_other_names_are_refused():
    with pytest.raises(SpecError, match="Outer: got the columns number, expected inner.number, n"):
        make(1.0).unflatten({"number": torch.zeros(1)})


def test_storage_and_chosen_rows_lie_in_memory_as_they_did():
    layers_outside = torch.arange(24.0).reshape(3, 2, 4).transpose(0, 1)
    for example in (Inner(layers_outside), Inner(layers_outside[:1])):
        buffer = example.allocate(5).number
        assert buffer.shape == (5, 3, 4)
        assert buffer.transpose(0, 1).is_contiguous()
    chosen = Inner(layers_outside[..., 1:])[torch.tensor([1, 0, 1])].number
    assert torch.equal(chosen, layers_outside[[1, 0, 1], :, 1:])
    assert chosen.transpose(0, 1).is_contiguous()
    assert Inner(torch.zeros(2, 3, 4)).allocate(5).number.is_contiguous()


def test_rows_without_padding_are_compact():
    rows = make(1.0, 2.0)
    assert rows.compact() == rows
