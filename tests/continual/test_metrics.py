"""The golden matrix of the literature, missing cells, and intervals of the metrics."""

import math
from pathlib import Path

import numpy as np
import pytest

from vla_crl.continual import metrics
from vla_crl.continual.metrics import METRICS, compute_metrics
from vla_crl.continual.statistics import wilson_interval
from vla_crl.continual.success_matrix import Cell, SuccessMatrix
from vla_crl.errors import SpecError

TRAIN = np.array([[0.50, 0.40, 0.30], [0.90, 0.50, 0.40], [0.80, 0.85, 0.45], [0.85, 0.75, 0.95]])
HELDOUT = np.array([[0.60, 0.20], [0.60, 0.30], [0.65, 0.25], [0.70, 0.20]])
GOLDEN = {
    "avg": 0.85,  # (.85 + .75 + .95) / 3
    "delta_avg": 0.45,  # .85 - (.50 + .40 + .30) / 3
    "nbt_final": 0.075,  # ((.90 - .85) + (.85 - .75)) / 2
    "fwt_gem": 0.125,  # ((.50 - .40) + (.45 - .30)) / 2
    "zs": 0.45,  # (.70 + .20) / 2
    "delta_zs": 0.05,  # .45 - (.60 + .20) / 2
}


def make_matrix(episodes: int = 100, missing: tuple[int, str] | None = None) -> SuccessMatrix:
    cells = []
    for split, rates in (("train", TRAIN), ("heldout", HELDOUT)):
        for (stage, column), rate in np.ndenumerate(rates):
            task = f"{split}_{column}"
            if (stage, task) != missing:
                cells.append(
                    Cell(
                        stage=stage,
                        task=task,
                        split=split,  # pyright: ignore[reportArgumentType]
                        successes=round(rate * episodes),
                        episodes=episodes,
                    )
                )
    return SuccessMatrix.from_cells(cells)


@pytest.mark.parametrize("name", METRICS)
def test_the_golden_matrix_gives_the_values_of_the_literature(name: str) -> None:
    rates = TRAIN if METRICS[name].split == "train" else HELDOUT
    assert METRICS[name].function(rates) == pytest.approx(GOLDEN[name], abs=1e-12)


def test_learning_accuracy_is_the_mean_of_the_diagonal() -> None:
    assert metrics.learning_accuracy(TRAIN) == pytest.approx((0.90 + 0.85 + 0.95) / 3)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metrics_of_a_file_are_the_golden_ones(tmp_path: Path, suffix: str) -> None:
    make_matrix().write(tmp_path / f"matrix.{suffix}")
    estimates = compute_metrics(SuccessMatrix.read(tmp_path / f"matrix.{suffix}"))
    values = {name: item.value if item else None for name, item in estimates.items()}
    assert list(values) == ["avg", "delta_avg", "nbt_final", "fwt_gem", "zs", "delta_zs"]
    assert values == pytest.approx(GOLDEN)


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        ((3, "train_0"), {"avg", "delta_avg", "nbt_final"}),
        ((3, "train_2"), {"avg", "delta_avg"}),  # the last task cannot have been forgotten
        ((0, "train_0"), {"delta_avg"}),  # the first task has no stages before its own
        ((0, "train_1"), {"delta_avg", "fwt_gem"}),
        ((1, "train_0"), {"nbt_final"}),
        ((1, "train_1"), {"fwt_gem"}),
        ((2, "train_0"), set()),
        ((3, "heldout_1"), {"zs", "delta_zs"}),
        ((0, "heldout_1"), {"delta_zs"}),
    ],
)
def test_a_metric_whose_cell_is_missing_is_none_and_the_others_stay(
    missing: tuple[int, str], lost: set[str]
) -> None:
    values = compute_metrics(make_matrix(missing=missing))
    assert {name for name, value in values.items() if value is None} == lost
    for name in set(values) - lost:
        value = values[name]
        assert value is not None
        assert value.value == pytest.approx(GOLDEN[name])


def test_transfer_and_forgetting_of_a_single_task_do_not_exist() -> None:
    single = np.array([[0.2], [0.9]])
    assert metrics.avg(single) == 0.9
    assert metrics.delta_avg(single) == pytest.approx(0.7)
    assert metrics.nbt_final(single) is None
    assert metrics.fwt_gem(single) is None
    assert metrics.zs(np.empty((2, 0))) is None


def test_in_two_rounds_a_tasks_own_stage_is_its_last() -> None:
    rates = np.array([[0.1, 0.2], [0.5, 0.3], [0.4, 0.6], [0.9, 0.5], [0.7, 0.8]])  # a b a b
    assert metrics.avg(rates) == pytest.approx((0.7 + 0.8) / 2)
    assert metrics.delta_avg(rates) == pytest.approx((0.6 + 0.6) / 2)
    assert metrics.nbt_final(rates) == pytest.approx(0.9 - 0.7)
    assert metrics.fwt_gem(rates) == pytest.approx(0.3 - 0.2)
    assert metrics.learning_accuracy(rates) == pytest.approx((0.9 + 0.8) / 2)


def test_rates_that_are_not_stages_by_tasks_are_refused() -> None:
    with pytest.raises(SpecError, match=r"got shape \(3, 3\), expected \(T \+ 1, T\)"):
        metrics.avg(np.zeros((3, 3)))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("shape", [(4, 3), (7, 3)])  # one round and two
def test_the_weights_of_a_metric_give_its_value(name: str, shape: tuple[int, int]) -> None:
    rates, function = np.random.default_rng(0).random(shape), METRICS[name].function
    assert (function.weights(shape) * rates).sum() == pytest.approx(function(rates))


def test_the_interval_of_avg_adds_the_wilson_margins_in_quadrature() -> None:
    value = compute_metrics(make_matrix())["avg"]
    assert value is not None
    margins = [0.01 * s - wilson_interval(s, 100)[0] for s in (85, 75, 95)]
    assert value.low == pytest.approx(0.85 - math.sqrt(sum(m**2 for m in margins)) / 3)


@pytest.mark.parametrize("name", METRICS)
def test_more_episodes_give_narrower_intervals_around_the_same_value(name: str) -> None:
    few, many = (compute_metrics(make_matrix(num))[name] for num in (20, 2000))
    assert few is not None
    assert many is not None
    assert many.value == pytest.approx(GOLDEN[name])
    assert few.low < many.low < many.value < many.high < few.high
