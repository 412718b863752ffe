"""TaskStream: order, splits, permutations and what it refuses."""

import pytest

from vla_crl.continual.stream import TaskStream
from vla_crl.errors import ConfigError


def make_stream(**changes: object) -> TaskStream:
    settings = {"train_tasks": ("a", "b", "c"), "heldout_tasks": ("x",), "episodes_per_task": 8}
    return TaskStream(**(settings | changes))  # pyright: ignore[reportArgumentType]


def test_stages_count_from_one_in_the_order_of_training() -> None:
    stream = make_stream()
    assert list(stream.stages()) == [(1, "a"), (2, "b"), (3, "c")]
    assert stream.num_stages == 3
    assert stream.tasks == ("a", "b", "c", "x")
    assert [stream.split(task) for task in stream.tasks] == ["train", "train", "train", "heldout"]


def test_permuted_reorders_training_tasks_only_and_is_fixed_by_the_seed() -> None:
    stream = make_stream(train_tasks=tuple("abcdefgh"))
    permuted = stream.permuted(0)
    # random.Random(0).random() gives .844 .758 .421 .259 .511 .405 .784 .303 for a..h.
    assert permuted.train_tasks == tuple("dhfcebga")
    assert permuted.heldout_tasks == stream.heldout_tasks
    assert permuted.episodes_per_task == stream.episodes_per_task
    assert stream.permuted(1).train_tasks != permuted.train_tasks


def test_single_keeps_the_other_tasks_as_held_out_columns() -> None:
    single = make_stream().single("b")
    assert single.train_tasks == ("b",)
    assert single.heldout_tasks == ("a", "c", "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tasks": ()}, "train_tasks is empty; name at least one"),
        ({"train_tasks": ("a", "b", "a")}, "train_tasks: 'a' is listed 2 times"),
        ({"heldout_tasks": ("x", "x")}, "heldout_tasks: 'x' is listed 2 times"),
        ({"heldout_tasks": ("x", "b")}, "'b' is both a training and a held-out task"),
        ({"episodes_per_task": 0}, "episodes_per_task is 0; it must be at least 1"),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stream(**changes)


def test_unknown_tasks_are_refused_with_the_nearest_name() -> None:
    stream = make_stream(train_tasks=("red_cube", "ball"))
    with pytest.raises(ConfigError, match=r"unknown task 'red_cub'\. Did you mean 'red_cube'"):
        stream.split("red_cub")
    with pytest.raises(ConfigError, match="unknown task 'x'"):  # held out: there is no stage for it
        stream.single("x")
