"""How hard each term of a loss pulls: the norm of its gradient by itself.

A coefficient that is not felt, of a penalty or of an imitation, is seen here and nowhere else: a
loss may be large and its gradient nothing, and the norm of the sum tells of the largest alone.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

SUFFIX = "_grad_norm"
"""Behind a term's name, that of its norm."""
RATIO_SUFFIX = "_grad_ratio"
"""Behind a term's name, its norm divided by that of the policy's loss."""


def gradient_norms(
    terms: Mapping[str, Tensor], parameters: Iterable[nn.Parameter]
) -> dict[str, Tensor]:
    """Return the norm of each term's gradient, as scalars.

    Each takes a backward pass. Graph and `.grad` stay as they are, for the pass that learns.

    Args:
        terms: Scalars, with their coefficients.
        parameters: What they may reach.
    """
    trained, norms = list(parameters), {}
    for name, term in terms.items():
        found: list[Tensor] = []
        if term.requires_grad:
            gradients = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
            found = [gradient for gradient in gradients if gradient is not None]
        norms[name + SUFFIX] = get_total_norm(found) if found else torch.zeros(())
    return norms


def gradient_ratios(norms: Mapping[str, Tensor], terms: Iterable[str]) -> dict[str, Tensor]:
    """Return how hard terms pull beside the policy's loss; NaN where neither pulls.

    Args:
        norms: Of `gradient_norms`, that of "policy_loss" among them.
        terms: Names of the terms.
    """
    names = list(terms)
    if not names:  # as where the value head alone is trained
        return {}
    policy = norms["policy_loss" + SUFFIX]
    return {name + RATIO_SUFFIX: norms[name + SUFFIX] / policy for name in names}
