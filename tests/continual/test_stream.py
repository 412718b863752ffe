"""TaskStream: order, splits and what it refuses."""

import pytest

from vla_crl.continual.stream import TaskStream
from vla_crl.errors import ConfigError


def make_stream(**changes: object) -> TaskStream:
    settings = {"train_tasks": ("a", "b", "c"), "heldout_tasks": ("x",), "episodes_per_task": 8}
    return TaskStream(**(settings | changes))  # pyright: ignore[reportArgumentType]


def test_stages_count_from_one_in_the_order_of_training() -> None:
    stream = make_stream()
    assert list(stream.stages()) == [(1, ("a",)), (2, ("b",)), (3, ("c",))]
    assert stream.num_stages == 3
    assert stream.tasks == ("a", "b", "c", "x")
    assert [stream.split(task) for task in stream.tasks] == ["train", "train", "train", "heldout"]


def test_a_stream_may_be_run_through_twice() -> None:
    stream = make_stream(train_tasks=("a", "b"), rounds=2)
    assert list(stream.stages()) == [(1, ("a",)), (2, ("b",)), (3, ("a",)), (4, ("b",))]
    assert stream.num_stages == 4
    assert stream.tasks == ("a", "b", "x")


def test_a_joint_stream_trains_all_tasks_in_the_last_stage_of_a_round() -> None:
    stream = make_stream(train_tasks=("a", "b", "c"), rounds=2).joined()
    assert list(stream.stages()) == [(3, ("a", "b", "c")), (6, ("a", "b", "c"))]
    assert stream.num_stages == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tasks": ()}, "train_tasks has 0 entries, expected at least 1"),
        ({"train_tasks": ("a", "b", "a")}, "train_tasks: 'a' is listed 2 times"),
        ({"heldout_tasks": ("x", "x")}, "heldout_tasks: 'x' is listed 2 times"),
        ({"heldout_tasks": ("x", "b")}, "'b' is both a training and a held-out task"),
        ({"episodes_per_task": 0}, "episodes_per_task = 0, expected at least 1"),
        ({"rounds": 0}, "rounds = 0, expected at least 1 and at most 10000"),
        ({"rounds": 10_001}, "rounds = 10001, expected at least 1 and at most 10000"),
        (
            {"rounds": 10_000},
            "rounds is 10000, which makes 30000 stages .*at most 10000",
        ),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stream(**changes)


def test_unknown_tasks_are_refused_with_the_nearest_name() -> None:
    stream = make_stream(train_tasks=("red_cube", "ball"))
    with pytest.raises(ConfigError, match=r"unknown task 'red_cub'\. Did you mean 'red_cube'"):
        stream.split("red_cub")
