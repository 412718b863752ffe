"""Continual-learning metrics of a success matrix, named after the convention they follow.

The same matrix gives "forgetting" 0.05 or 0.09 and "forward transfer" 0.13 or 0.73 depending on
the field, so every name here stands for one formula. Notation: R[i, j] is the success rate on
task j after stage i; stage 0 is before training, T the last stage; training task j is trained in
stage j. Where the T tasks are run through several times, S is the last stage: R[T, j] stands for
R[S, j], and task j's own stage is its last one. All six are fractions, all of them linear in R.

References:
    Hu et al. 2026, arXiv:2603.11653 (AVG, NBT, FWT and ZS for continual RL of VLA policies).
    Lopez-Paz & Ranzato 2017, arXiv:1706.08840 (GEM: the form of forward and backward transfer;
    GEM subtracts a randomly initialised network where we subtract stage 0).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import NamedTuple

import numpy as np

from vla_crl.continual.statistics import CONFIDENCE, Estimate, linear_interval
from vla_crl.continual.success_matrix import SuccessMatrix
from vla_crl.contracts import Split
from vla_crl.errors import SpecError

Entries = tuple[np.ndarray, ...]
"""Entries of a matrix whose mean is taken; if there are two arrays, the second is taken off."""


class MeanOf:
    """A metric: the mean of some entries, or of how much they exceed others.

    So it is linear in the rates, and its weights can be told from where the entries stand.
    """

    def __init__(self, entries: Callable[[np.ndarray], Entries]) -> None:
        """Wrap the function that picks the entries out of a matrix."""
        self._entries = entries
        update_wrapper(self, entries)

    def __call__(self, rates: np.ndarray) -> float | None:
        """Return the value as a fraction, or None where an entry it needs was not evaluated.

        Args:
            rates: [S + 1, T or H] success rates, rows = stages 0..S, NaN = not evaluated.
        """
        first, *others = self._entries(rates)
        values = first - others[0] if others else first
        return float(values.mean()) if values.size and not np.isnan(values).any() else None

    def weights(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return w [S + 1, T or H] with metric(R) = sum_ij w[i, j] R[i, j]."""
        weights = np.zeros(shape)
        numbers = np.arange(weights.size).reshape(shape)
        for entries, sign in zip(self._entries(numbers), (1.0, -1.0), strict=False):
            weights.flat[entries] += sign / len(entries)
        return weights


@MeanOf
def avg(train: np.ndarray) -> Entries:
    """Take mean_j R[T, j]: final success on the training tasks (AVG of arXiv:2603.11653)."""
    return (_stages(train)[-1],)


@MeanOf
def delta_avg(train: np.ndarray) -> Entries:
    """Take mean_j (R[T, j] - R[0, j]): gain over the base policy (dAVG of arXiv:2603.11653)."""
    return _stages(train)[-1], train[0]


@MeanOf
def nbt_final(train: np.ndarray) -> Entries:
    """Take 1/(T-1) sum_{j<T} (R[j, j] - R[T, j]): forgetting, lower is better.

    Negative backward transfer at the end of the stream (NBT of arXiv:2603.11653, appendix B; minus
    GEM's BWT). None for a single task.
    """
    return _own(train)[:-1], train[-1][:-1]


@MeanOf
def fwt_gem(train: np.ndarray) -> Entries:
    """Take 1/(T-1) sum_{j>1} (R[j-1, j] - R[0, j]): gain on a task before it is trained.

    Forward transfer in GEM's form (FWT of arXiv:2603.11653). None for a single task.
    """
    return np.diagonal(_stages(train))[1:], train[0][1:]


@MeanOf
def zs(heldout: np.ndarray) -> Entries:
    """Take mean_h R[T, h]: final success on tasks never trained (ZS of arXiv:2603.11653)."""
    return (heldout[-1],)


@MeanOf
def delta_zs(heldout: np.ndarray) -> Entries:
    """Take mean_h (R[T, h] - R[0, h]): what training did to the others (dZS, arXiv:2603.11653)."""
    return heldout[-1], heldout[0]


@MeanOf
def learning_accuracy(train: np.ndarray) -> Entries:
    """Take mean_j R[j, j]: success on each training task right after its own stage.

    Not one of the six: read it beside `nbt_final`, which is also small where nothing was learnt.
    """
    return (_own(train),)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric and how to speak of it."""

    function: MeanOf
    split: Split
    title: str
    symbol: str
    formula: str
    explanation: str
    is_difference: bool = False
    lower_is_better: bool = False


METRICS: dict[str, Metric] = {
    "avg": Metric(
        function=avg,
        split="train",
        title="Final success",
        symbol="AVG",
        formula="mean_j R[T,j]",
        explanation="Mean success on the training tasks after the last stage.",
    ),
    "delta_avg": Metric(
        function=delta_avg,
        split="train",
        title="Gain over the base policy",
        symbol="ΔAVG",
        formula="mean_j (R[T,j] - R[0,j])",
        explanation="What the training tasks gained between stage 0 and the last stage.",
        is_difference=True,
    ),
    "nbt_final": Metric(
        function=nbt_final,
        split="train",
        title="Forgetting",
        symbol="NBT",
        formula="1/(T-1) sum_{j<T} (R[j,j] - R[T,j])",
        explanation="How much earlier tasks lost between their own stage and the last one. "
        "Negative: they improved further.",
        is_difference=True,
        lower_is_better=True,
    ),
    "fwt_gem": Metric(
        function=fwt_gem,
        split="train",
        title="Forward transfer",
        symbol="FWT",
        formula="1/(T-1) sum_{j>1} (R[j-1,j] - R[0,j])",
        explanation="How much a task had gained from earlier stages before its own began.",
        is_difference=True,
    ),
    "zs": Metric(
        function=zs,
        split="heldout",
        title="Held-out success",
        symbol="ZS",
        formula="mean_h R[T,h]",
        explanation="Mean success after the last stage on tasks that were never trained.",
    ),
    "delta_zs": Metric(
        function=delta_zs,
        split="heldout",
        title="Held-out gain",
        symbol="ΔZS",
        formula="mean_h (R[T,h] - R[0,h])",
        explanation="How much tasks that were never trained gained or lost over the whole stream.",
        is_difference=True,
    ),
}


def compute_metrics(
    matrix: SuccessMatrix, confidence: float = CONFIDENCE
) -> dict[str, Estimate | None]:
    """Compute the six metrics of one run with intervals from its episode counts.

    The interval says how far the finite number of test episodes may mislead about *this* policy;
    how much another training seed would differ needs several runs (`summarize_seeds`). Cells count
    as independent, which is conservative where the same initial states are tested in every stage.
    """
    return {
        name: estimate(metric.function, metric.split, matrix, confidence)
        for name, metric in METRICS.items()
    }


def estimate(
    function: MeanOf, split: Split, matrix: SuccessMatrix, confidence: float = CONFIDENCE
) -> Estimate | None:
    """Apply a metric to the tasks of a split and derive its interval (`linear_interval`)."""
    num_train = matrix.num_train_tasks
    columns = slice(0, num_train) if split == "train" else slice(num_train, None)
    rates = matrix.rates[:, columns]
    if function(rates) is None:
        return None
    weights = function.weights(rates.shape)
    counted = weights != 0.0
    successes, episodes = matrix.successes[:, columns], matrix.episodes[:, columns]
    return linear_interval(weights[counted], successes[counted], episodes[counted], confidence)


class Loss(NamedTuple):
    """What a training task lost between its own stage and the end.

    Attributes:
        task: Which one.
        own: Success right after its own stage.
        last: Success at the end.
        lost: own - last.
    """

    task: str
    own: float
    last: float
    lost: Estimate


def largest_loss(matrices: Sequence[SuccessMatrix]) -> Loss | None:
    """Return the training task that lost most after its own stage, and how much.

    Episodes of all matrices count together: it is what happened to these policies, not what another
    training seed would do.

    Args:
        matrices: Of complete runs on the same tasks, in any order.

    Returns:
        None where there is no earlier task, or no loss.
    """
    losses = []
    for task in matrices[0].train_tasks:
        counts = np.zeros((2, 2), int)  # after its own stage and at the end: successes, episodes
        for matrix in matrices:
            column = matrix.train_tasks.index(task)
            own = len(matrix.rates) - matrix.num_train_tasks + column
            for row, stage in enumerate((own, -1)):
                counts[row] += matrix.successes[stage, column], matrix.episodes[stage, column]
        if counts[:, 1].all():
            own, last = counts[:, 0] / counts[:, 1]
            lost = linear_interval(np.array([1.0, -1.0]), counts[:, 0], counts[:, 1], CONFIDENCE)
            losses.append(Loss(task, own, last, lost))
    worst = max(losses, key=lambda loss: loss.lost.value, default=None)
    return worst if worst is not None and worst.lost.value > 0 else None


def _own(train: np.ndarray) -> np.ndarray:
    """Return [T] the success on each task right after it was trained for the last time."""
    num_tasks = _stages(train).shape[1]
    return np.diagonal(train[-1 - num_tasks :], offset=-1)


def _stages(train: np.ndarray) -> np.ndarray:
    if train.ndim != 2 or len(train) < 2 or (len(train) - 1) % max(train.shape[1], 1):
        raise SpecError(
            f"success rates of the training tasks: got shape {train.shape}, expected (T + 1, T): "
            "stages 0..T by the T training tasks in the order they are trained; T more stages for "
            "every further round"
        )
    return train
