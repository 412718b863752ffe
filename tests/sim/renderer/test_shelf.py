"""Contents that several scenes have in common, kept once."""

import gc

import numpy as np
import pytest

from vla_crl.sim.renderer.shelf import Column, Content, Shelves, content_key


@pytest.fixture
def shelves():
    return Shelves(Column(np.int32, (2,), 10), Column(np.uint8, (), 10))


def content(first, second):
    return Content(
        (np.full((first, 2), first, np.int32), np.full(second, second, np.uint8)), "note"
    )


def test_contents_lie_one_after_another(shelves):
    shelf = shelves.shelve({"a": lambda: content(3, 4), "b": lambda: content(2, 1)})
    assert shelf.place("a").first == (0, 0)
    assert shelf.place("b").first == (3, 4)
    assert shelf.place("b").note == "note"
    assert shelf.arrays[0][:5].tolist() == [[3, 3]] * 3 + [[2, 2]] * 2
    assert shelf.arrays[1][:5].tolist() == [4, 4, 4, 4, 1]


def test_what_lies_there_is_not_made_again(shelves):
    shelf = shelves.shelve({"a": lambda: content(3, 4)})
    again = shelves.shelve({"a": lambda: pytest.fail("made again"), "b": lambda: content(1, 1)})
    assert again is shelf
    assert again.place("b").first == (3, 4)


def test_a_full_shelf_is_followed_by_one_that_holds_all_that_is_wanted(shelves):
    full = shelves.shelve({"a": lambda: content(8, 1)})
    next_one = shelves.shelve({"a": lambda: content(8, 1), "b": lambda: content(9, 1)})
    assert next_one is not full
    assert next_one.arrays[0][:17].tolist() == [[8, 8]] * 8 + [[9, 9]] * 9
    assert len(next_one.arrays[0]) == 34  # twice what was wanted
    assert full.arrays[0][0].tolist() == [8, 8]


def test_a_shelf_that_nobody_holds_is_gone(shelves):
    made = []

    def make():
        made.append(1)
        return content(1, 1)

    shelf = shelves.shelve({"a": make})
    del shelf
    gc.collect()
    shelves.shelve({"a": make})
    assert len(made) == 2


def test_keys_tell_contents_apart():
    zeros = np.zeros((2, 3), np.uint8)
    assert content_key(zeros, 1) == content_key(zeros.copy(), 1)
    others = [
        content_key(zeros, 2),
        content_key(zeros.reshape(3, 2), 1),
        content_key(zeros.view(np.int8), 1),
        content_key(zeros + np.uint8(1), 1),
    ]
    assert len({content_key(zeros, 1), *others}) == 5
