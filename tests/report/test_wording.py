"""Sentences claim only what the intervals support."""

import pytest

from vla_crl.continual.success_matrix import Cell, SuccessMatrix
from vla_crl.report.wording import (
    duration,
    headline,
    loss_sentence,
    metric_interval,
    metric_value,
    points,
    sentences,
    stage_label,
    task_label,
    transfer_sentence,
)


def make_matrix(*rows: list[int], num_heldout: int = 1) -> SuccessMatrix:
    """Rows of successes in 100 episodes; the last `num_heldout` columns are held out."""
    num_train = len(rows[0]) - num_heldout
    cells = [
        Cell(
            stage=stage,
            task=f"task_{column}",
            split="train" if column < num_train else "heldout",
            successes=successes,
            episodes=100,
        )
        for stage, row in enumerate(rows)
        for column, successes in enumerate(row)
    ]
    return SuccessMatrix.from_cells(cells)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (([40, 40, 20],), "The base policy is evaluated; training on 2 tasks has begun."),
        (
            ([40, 40, 20], [90, 40, 20]),
            "1 of 2 stages finished; in the latest 'task 0' went from 40 % to 90 %.",
        ),
        (
            ([40, 40, 20], [90, 40, 20], [50, 90, 20]),
            "2 tasks trained in a row: mean success rose from 40 % to 70 %, "
            "40 points were forgotten on the way.",
        ),
        (
            ([40, 40, 20], [90, 40, 20], [89, 91, 20]),
            "2 tasks trained in a row: mean success rose from 40 % to 90 %, +1.0 points forgotten, "
            "no clear change (95 % interval \N{MINUS SIGN}7.8 to +9.8).",
        ),
        (
            ([40, 40, 20], [60, 40, 20], [95, 91, 20]),
            "2 tasks trained in a row: mean success rose from 40 % to 93 %, "
            "earlier tasks gained 35 points after their own stage.",
        ),
        (
            ([40, 40, 20], [44, 40, 20], [40, 42, 20]),
            "2 tasks trained in a row: mean success went from 40 % to 41 %, no clear change "
            "(95 % interval \N{MINUS SIGN}8.5 to +10.4), +4.0 points forgotten, no clear change "
            "(95 % interval \N{MINUS SIGN}9.5 to +17.3).",
        ),
        (([80, 20], [10, 20]), "One task trained: mean success fell from 80 % to 10 %."),
    ],
)
def test_the_headline_says_what_happened(rows: tuple[list[int], ...], sentence: str) -> None:
    assert headline(make_matrix(*rows)) == sentence


def test_the_headline_of_an_empty_run_claims_nothing() -> None:
    assert headline(None) == "The run has begun; nothing is evaluated yet."


def test_a_gap_in_the_last_row_is_said_and_not_counted_as_failure() -> None:
    cells = list(make_matrix([40, 40, 20], [90, 40, 20], [89, 91, 20]).cells())
    gap = SuccessMatrix.from_cells([c for c in cells if (c.stage, c.task) != (2, "task_0")])
    assert headline(gap) == "All 2 stages finished, but some tasks were not evaluated."


def test_the_transfer_sentence_says_what_happened_to_held_out_tasks() -> None:
    kept = make_matrix([40, 20, 20], [90, 22, 21], num_heldout=2)
    assert transfer_sentence(kept) == (
        "The 2 tasks never trained went from 20 % to 22 %, no clear change (95 % interval "
        "\N{MINUS SIGN}6.5 to +9.4)."
    )
    assert transfer_sentence(make_matrix([40, 60], [90, 20])) == (
        "The one task never trained fell from 60 % to 20 %."
    )
    assert transfer_sentence(make_matrix([40, 60])) is None


def test_numbers_are_written_with_their_unit() -> None:
    assert metric_value("avg", 0.8766) == "87.7 %"
    assert metric_value("nbt_final", -0.021) == "\N{MINUS SIGN}2.1"
    assert metric_value("zs", None) == "\N{EN DASH}"
    assert metric_interval("zs", 0.1, 0.2) == "10.0 to 20.0 %"
    assert metric_interval("delta_zs", -0.1, 0.2) == "\N{MINUS SIGN}10.0 to +20.0"
    assert metric_interval("delta_zs", None, None) == "\N{EN DASH}"
    assert [duration(s) for s in (12.3, 59.6 * 60, 4380)] == ["12 s", "1 h 00 min", "1 h 13 min"]


def test_names_become_words() -> None:
    assert task_label("red_cube_in_basket") == "red cube in basket"
    cells = [
        Cell(stage=stage, task=task, split="train", successes=1, episodes=2)
        for stage in (0, 1)
        for task in ("a_b", "c_d")
    ]
    matrix = SuccessMatrix.from_cells(cells)
    assert stage_label(0, matrix) == "before training"
    assert stage_label(2, matrix) == "after stage 2: c d"


def test_nothing_is_neither_gained_nor_lost() -> None:
    assert points(-1e-9) == points(0.0) == "+0.0"
    assert metric_interval("avg", -0.3, 1.2) == "0.0 to 100.0 %"


def test_the_task_that_lost_most_is_named_with_the_interval_of_its_loss() -> None:
    """Newcombe's interval of 90/100 - 50/100 is +27.8 to +50.6: Wilson's margins in quadrature.

    90 % is 82.56 to 94.48 and 50 % 40.38 to 59.62; 40 - hypot(7.44, 9.62) = 27.84, 40 +
    hypot(4.48, 9.62) = 50.61.
    """
    run = make_matrix([40, 40, 40, 20], [90, 40, 20, 20], [80, 90, 20, 20], [50, 89, 90, 20])
    assert loss_sentence([run]) == (
        "Of the trained tasks 'task 0' lost most after its own stage: from 90 % to 50 % "
        "(95 % interval of the loss +27.8 to +50.6)."
    )
    assert loss_sentence([run]) in sentences(run)


def test_episodes_of_several_runs_count_together_whatever_the_order_of_their_tasks() -> None:
    first = make_matrix([40, 40, 20], [90, 40, 20], [50, 90, 20])
    other = make_matrix([40, 40, 20], [90, 40, 20], [90, 90, 20])
    told = loss_sentence([first, other, first])
    assert told is not None
    assert "'task 0' lost most after its own stage over 3 runs: from 90 % to 63 %" in told


def test_without_a_loss_no_task_is_named() -> None:
    for rows in (([40, 20], [90, 20]), ([40, 40, 20], [60, 40, 20], [95, 91, 20]), ([40, 20],)):
        assert loss_sentence([make_matrix(*rows)]) is None
