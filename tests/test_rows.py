from dataclasses import dataclass

import torch
from torch import Tensor

from vla_crl.rows import Rows


@dataclass(frozen=True)
class Inner(Rows):
    number: Tensor


@dataclass(frozen=True)
class Outer(Rows):
    number: Tensor
    inner: Inner


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
