"""How much a policy's actions depend on each weight: the diagonal of its Fisher information.

    F_p = E[(d log pi(a|s) / d theta_p)^2]    over the states and actions of the policy itself

It is a mean of squares of per-sample gradients. The square of their mean, as of a batch's `.grad`,
is another number: it goes to 0 where the gradients of single samples cancel.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_crl.algos.protocols import ActorCritic, Batch
from vla_crl.density import Density, GaussianDensity
from vla_crl.errors import ConfigError
from vla_crl.rows import Rows

Parameters = dict[str, Tensor]
OfChunk = Callable[[Rows, Rows], Parameters]
"""What is computed of what one chunk saw, a context or an observation, and of its trace."""


def sampled_fisher(
    policy: ActorCritic, parameters: Mapping[str, nn.Parameter], batches: Iterable[Batch]
) -> Parameters:
    """Return the mean over chunks of the squared gradient of their log-probability.

    Args:
        policy: That sampled the chunks.
        parameters: Of it, by name; F is of these.
        batches: Chunks; as many as a batch has are differentiated at once.
    """

    def squares(values: Parameters, density: Callable[[Parameters], Density]) -> Parameters:
        gradients = grad(lambda at: density(at).log_prob().sum())(values)
        return {name: gradient.square() for name, gradient in gradients.items()}

    return _mean(policy, parameters, batches, squares)


def gaussian_fisher(
    policy: ActorCritic, parameters: Mapping[str, nn.Parameter], batches: Iterable[Batch]
) -> Parameters:
    """Return the same with the expectation over actions in closed form.

    For independent normal numbers of mean m and standard deviation s (Kullback 1959, ch. 6)

        F_p = sum_i ((dm_i / d theta_p)^2 + 2 (ds_i / d theta_p)^2) / s_i^2

    which has no noise of sampled actions, and takes as many backward passes as there are numbers.

    Args:
        policy: Whose density is normal.
        parameters: As of `sampled_fisher`.
        batches: Likewise.

    Raises:
        ConfigError: Its density is another.
    """

    def squares(values: Parameters, density: Callable[[Parameters], Density]) -> Parameters:
        def numbers(at: Parameters) -> tuple[tuple[Tensor, Tensor], Tensor]:
            found = require_normal(density(at))
            mean, std = found.mean.flatten(), found.std.expand_as(found.mean).flatten()
            return (mean, std), std.detach()

        (of_mean, of_std), std = jacrev(numbers, has_aux=True)(values)
        weight = std.square().reciprocal()
        return {
            name: torch.einsum("n,n...->...", weight, of_mean[name].square())
            + 2.0 * torch.einsum("n,n...->...", weight, of_std[name].square())
            for name in values
        }

    return _mean(policy, parameters, batches, squares)


def require_normal(density: Density) -> GaussianDensity:
    """Return a density of which `gaussian_fisher` knows the closed form.

    Raises:
        ConfigError: It is another.
    """
    if not isinstance(density, GaussianDensity):
        raise ConfigError(
            f"fisher = 'gaussian' needs a normal density, but the policy's is a "
            f"{type(density).__name__}; choose 'sampled'"
        )
    return density


class _Evaluated(nn.Module):
    """A policy called as a module, whose parameters can be exchanged.

    It is given contexts, or observations where the context depends on these parameters too.
    """

    def __init__(self, policy: Any, *, encodes: bool) -> None:
        super().__init__()
        self.policy, self._encodes = policy, encodes

    def forward(self, read: Any, trace: Any) -> Density:
        context = self.policy.encode(read) if self._encodes else read
        return self.policy.evaluate_actions(context, trace).density


def _mean(
    policy: ActorCritic,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Batch],
    squares: Callable[[Parameters, Callable[[Parameters], Density]], Parameters],
) -> Parameters:
    """Average what a function makes of each chunk by itself."""
    values = {name: parameter.detach() for name, parameter in parameters.items()}

    def make(*, encodes: bool) -> OfChunk:
        module = _Evaluated(policy, encodes=encodes)

        def density(read: Rows, trace: Rows, at: Parameters) -> Density:
            named = {f"policy.{name}": value for name, value in at.items()}
            return functional_call(module, named, (read, trace))

        def of_chunk(read: Rows, trace: Rows) -> Parameters:
            # Of fused attention vmap has no rule: it would run that row by row, and warn.
            with sdpa_kernel(SDPBackend.MATH):
                return squares(values, partial(density, read, trace))

        return of_chunk

    total, num_chunks = {name: torch.zeros_like(value) for name, value in values.items()}, 0
    for batch in batches:
        is_trained = batch.is_of_trained_backbone
        each = _one_by_one if is_trained else _at_once
        for found in each(make(encodes=is_trained), batch):
            for name, square in found.items():
                total[name] += square.detach()
        num_chunks += len(batch)
    if not num_chunks:
        raise ConfigError("the Fisher information needs chunks, got none")
    return {name: square / num_chunks for name, square in total.items()}


def _one_by_one(of_chunk: OfChunk, batch: Batch) -> Iterator[Parameters]:
    """Yield what a function makes of each observation; a backbone does not run within vmap."""
    assert batch.seen is not None  # kept where the backbone is trained
    for row in range(len(batch)):
        yield of_chunk(batch.seen[row], batch.trace[row])


def _at_once(of_chunk: OfChunk, batch: Batch) -> Iterator[Parameters]:
    """Yield the sum of what a function makes of the contexts of each length."""
    context = batch.context.detach()
    for rows, lengths in _of_one_length(context):
        yield _sum(of_chunk, context[rows], batch.trace[rows], lengths)


def _sum(of_chunk: OfChunk, context: Rows, trace: Rows, lengths: Parameters) -> Parameters:
    def of_row(context_row: Parameters, trace_row: Parameters) -> Parameters:
        read = context.unflatten(_one(context_row) | lengths)
        return of_chunk(read, trace.unflatten(_one(trace_row)))

    columns = {n: t for n, t in context.flatten().items() if n not in lengths}
    squares = vmap(of_row)(columns, trace.flatten())
    return {name: square.sum(dim=0) for name, square in squares.items()}


def _of_one_length(context: Rows) -> Iterator[tuple[Tensor, Parameters]]:
    """Split rows by what in them is no measured number, such as how much of a context is padding.

    Shapes depend on it, which vmap does not allow: it is given these as the same for all rows.

    Yields:
        Which rows, and the columns in which they are alike, of one row.
    """
    flat = context.flatten()
    lengths = {name: column for name, column in flat.items() if not column.is_floating_point()}
    if not lengths:
        yield torch.arange(len(context), device=next(iter(flat.values())).device), {}
        return
    numbers = [column.reshape(len(column), -1).long() for column in lengths.values()]
    table = torch.cat(numbers, dim=1)
    kinds, kind_of = table.unique(dim=0, return_inverse=True)
    for kind in range(len(kinds)):
        rows = (kind_of == kind).nonzero()[:, 0]
        yield rows, {name: column[rows[:1]] for name, column in lengths.items()}


def _one(row: Parameters) -> Parameters:
    return {name: tensor[None] for name, tensor in row.items()}
