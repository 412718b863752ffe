import pytest
import torch
from torch import distributions

from vla_crl.density import CategoricalDensity, Density, GaussianDensity
from vla_crl.errors import SpecError


def gaussian(seed: int, shape: tuple[int, ...] = (3, 2, 4, 7)) -> GaussianDensity:
    generator = torch.Generator().manual_seed(seed)
    sample, mean = (torch.randn(shape, generator=generator) for _ in range(2))
    std = 0.1 + torch.rand((*shape[:2], 1, 1), generator=generator)
    return GaussianDensity(sample, mean, std)


def categorical(seed: int) -> CategoricalDensity:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, 6, generator=generator)
    sample = torch.randint(6, (3, 5), generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False] * 5])
    return CategoricalDensity(sample, logits, mask)


def test_gaussian_agrees_with_torch_distributions():
    one, other = gaussian(0), gaussian(1)
    own = distributions.Normal(one.mean, one.std.expand_as(one.mean))
    its = distributions.Normal(other.mean, other.std.expand_as(other.mean))
    torch.testing.assert_close(one.log_prob(), own.log_prob(one.sample).sum(dim=(2, 3)))
    torch.testing.assert_close(one.entropy(), own.entropy().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(
        one.kl(other), distributions.kl_divergence(own, its).sum(dim=(1, 2, 3))
    )


def test_categorical_agrees_with_torch_distributions_where_there_is_a_part():
    one, other = categorical(0), categorical(1)
    own, its = (distributions.Categorical(logits=d.logits) for d in (one, other))
    torch.testing.assert_close(one.log_prob(), own.log_prob(one.sample) * one.mask)
    torch.testing.assert_close(one.entropy(), (own.entropy() * one.mask).sum(dim=1))
    expected = (distributions.kl_divergence(own, its) * one.mask).sum(dim=1)
    torch.testing.assert_close(one.kl(other), expected)
    assert one.entropy()[2] == 0.0


@pytest.mark.parametrize("density", [gaussian(0), categorical(0)])
def test_kl_from_itself_is_zero(density: Density):
    torch.testing.assert_close(density.kl(density), torch.zeros(3))


def test_what_is_stored_comes_back_as_it_was():
    density = gaussian(0)
    again = density[:1].unflatten(density.flatten())
    assert torch.equal(again.log_prob(), density.log_prob())
    assert set(density.parameters) == {"mean", "std"}
    assert set(categorical(0).parameters) == {"logits"}


def test_kl_of_different_kinds_or_shapes_is_an_error():
    with pytest.raises(SpecError, match=r"GaussianDensity of shape .* from a CategoricalDensity"):
        gaussian(0).kl(categorical(0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match=r"\(3, 2, 4, 7\) from a GaussianDensity \(3, 1, 4, 7\)"):
        gaussian(0).kl(gaussian(0, (3, 1, 4, 7)))
