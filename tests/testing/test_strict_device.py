"""Does the strict device refuse what a GPU refuses, and allow what it allows?"""

import copy
from collections.abc import Callable

import pytest
import torch

from vla_crl.testing.strict_device import StrictTensor, strict_device


@pytest.fixture(autouse=True)
def device():
    with strict_device() as name:
        yield name


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(2, 3),
        lambda x: torch.ones(2, 3) @ x.T,
        lambda x: torch.cat([x, torch.ones(2, 3)]),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.where(x > 0, x, torch.zeros(2, 3)),
        lambda x: x.masked_fill(torch.ones(2, 3).bool(), 1.0),
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: x.gather(1, torch.zeros(2, 1).long()),
        lambda x: torch.nn.functional.embedding(torch.tensor([0]), x),
        torch.nn.Linear(3, 4),
        lambda x: torch.ones(3)[x[0].long()],
        lambda x: torch.equal(x, torch.ones(2, 3)),
        lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1, 3)),
        lambda x: torch.zeros(2, 3).index_put_((torch.tensor([0]),), x[:1]),
        lambda x: torch.zeros(2, 3).add_(x),
    ],
)
def test_mixed_devices_are_refused(mix: Callable[[torch.Tensor], object]):
    x = torch.arange(6.0).reshape(2, 3).to("strict")
    with pytest.raises(RuntimeError, match=r"aten\..* of the cpu among those of device strict"):
        mix(x)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x * torch.tensor(2.0),
        lambda x: torch.tensor(2.0) * x,
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x[torch.tensor([True, False])],
        lambda x: x[[1, 0]],
        lambda x: torch.zeros_like(x).copy_(torch.ones(2, 3)),
        lambda x: x.index_put_((torch.tensor([0]),), torch.tensor(7.0)),
        lambda x: torch.zeros(2, 3, device="strict").index_put_((torch.tensor([0]),), x[:1]),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.cat([x, torch.ones(2, 3).to(x.device)]),
        lambda x: x.softmax(-1).to(torch.bfloat16).float(),
    ],
)
def test_what_a_gpu_allows_gives_the_numbers_of_the_cpu(use):
    on_cpu = torch.arange(6.0).reshape(2, 3)
    result = use(on_cpu.to("strict"))
    assert isinstance(result, StrictTensor)
    if "strict" not in use.__code__.co_consts:
        assert torch.equal(result.cpu(), use(on_cpu))


@pytest.mark.parametrize(
    "make",
    [
        lambda device: torch.arange(2.0, 8.0, 2.0, device=device),
        lambda device: torch.linspace(0, 1, 3, device=device),
        lambda device: torch.tensor([1, 2], device=device),
        lambda device: torch.full((2,), 3.0, device=device),
        lambda device: torch.eye(2, device=device),
        lambda device: torch.zeros(2, 3, dtype=torch.bfloat16, device=device),
    ],
)
def test_tensors_are_made_on_the_device(make, device):
    made, expected = make(device), make("cpu")
    assert made.device.type == device
    assert made.dtype == expected.dtype
    assert made.tolist() == expected.tolist()


def test_copies_cross_between_devices(device):
    target, source = torch.zeros(2, 3), torch.ones(2, 3, device=device)
    target[:1] = source[:1]
    source[:, 0] = torch.zeros(2)
    source[0, 1:].add_(1.0)
    assert target.tolist() == [[1.0] * 3, [0.0] * 3]
    assert source.tolist() == [[0.0, 2.0, 2.0], [0.0, 1.0, 1.0]]


def test_backward_and_optimizers_run(device):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].to(device)
    for layer in layers:
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
        layer(torch.ones(2, 3).to(layer.weight.device)).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.5)
        optimizer.step()
    assert isinstance(layers[1].weight, torch.nn.Parameter)
    assert torch.equal(layers[1].weight.cpu(), layers[0].weight)


def test_modules_change_their_type_of_numbers_and_are_copied(device):
    layer = torch.nn.Linear(3, 4).to(device)
    other = copy.deepcopy(layer).to(torch.bfloat16)
    other.weight.data += 1.0
    assert other.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        other.weight.float().cpu(), layer.weight.cpu() + 1.0, rtol=0.01, atol=0.01
    )
    with pytest.raises(RuntimeError, match="a tensor of the cpu for one of strict"):
        layer.weight.data = torch.zeros(4, 3)


@pytest.mark.parametrize("draw", [torch.rand, torch.randn, torch.randperm])
def test_draws_on_the_device_are_refused(draw, device):
    with pytest.raises(RuntimeError, match="draws on device strict; draw on the CPU and move it"):
        draw(3, device=device)


def test_numbers_have_to_be_fetched_from_the_device(device):
    x = torch.ones(2, device=device)
    with pytest.raises(TypeError, match="can't convert a tensor of device strict to numpy; use"):
        x.numpy()
    assert x.numpy(force=True).tolist() == x.tolist() == [1.0, 1.0]
    assert x.sum().item() == 2.0


def test_what_the_device_cannot_do_is_told(device):
    with pytest.raises(NotImplementedError, match=r"aten.squeeze_.*cannot change the shape"):
        torch.ones(1, 3, device=device).squeeze_(0)
