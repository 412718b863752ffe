from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_crl.continual.memory import ReplayMemory, places_in_reservoir
from vla_crl.continual.records import Records
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.rows import Rows


@dataclass(frozen=True)
class Chunk(Rows):
    number: Tensor


LIKE = Chunk(torch.zeros(1, dtype=torch.int64))


def chunks(first: int, num: int) -> Records:
    return Records.of(Chunk(torch.arange(first, first + num)))


def memory_in(folder: Path, quota: int = 10) -> ReplayMemory:
    memory = ReplayMemory(quota)
    memory.open(folder)
    return memory


def kept(memory: ReplayMemory, task: int = 0) -> list[int]:
    num = memory.num_chunks(task)
    return sorted(memory.draw(num, [task], np.random.default_rng(0), LIKE).number.tolist())


def test_all_chunks_are_kept_up_to_the_quota(tmp_path: Path):
    memory, rng = memory_in(tmp_path), np.random.default_rng(0)
    assert memory.add(0, chunks(0, 4), rng) == 4
    assert memory.add(3, chunks(100, 2), rng) == 2
    assert memory.add(0, chunks(4, 6), rng) == 6
    assert kept(memory) == [*range(10)]
    assert kept(memory, 3) == [100, 101]
    assert (len(memory), memory.tasks) == (12, (0, 3))


def test_every_chunk_is_kept_with_the_same_probability():
    # 40 chunks in four batches, 10 of them are kept: each in a quarter of 4000 runs, 1000 times;
    # the standard deviation is sqrt(4000 * 1/4 * 3/4) = 27.4.
    counts, rng = np.zeros(40), np.random.default_rng(0)
    for _ in range(4000):
        kept: dict[int, int] = {}
        for batch in range(4):
            taken = places_in_reservoir(10 * batch, 10, 10, rng)
            kept |= {place: 10 * batch + item for place, item in taken.items()}
        counts[list(kept.values())] += 1
    assert counts.sum() == 40_000
    assert np.abs(counts - 1000).max() < 4 * 27.4
    assert np.abs(counts.reshape(4, 10).mean(axis=1) - 1000).max() < 4 * 27.4 / 10**0.5


def test_draws_share_the_tasks_and_take_nothing_twice(tmp_path: Path):
    memory, rng = memory_in(tmp_path), np.random.default_rng(0)
    memory.add(0, chunks(0, 8), rng)
    memory.add(1, chunks(100, 8), rng)
    drawn = memory.draw(9, [0, 1], rng, LIKE).number
    assert len(drawn.unique()) == 9
    assert int((drawn < 100).sum()) == 5
    more = memory.draw(20, [1], rng, LIKE).number  # of 8
    assert (
        np.bincount(more - 100).tolist().count(2) + 2 * np.bincount(more - 100).tolist().count(3)
        == 12
    )


def test_draws_are_those_of_the_random_numbers(tmp_path: Path):
    memory = memory_in(tmp_path)
    memory.add(0, chunks(0, 8), np.random.default_rng(0))
    one, same, other = (
        memory.draw(5, [0], np.random.default_rng(seed), LIKE).number for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_memory_goes_on_from_its_state(tmp_path: Path):
    whole, rng = memory_in(tmp_path / "whole"), np.random.default_rng(0)
    stopped, other_rng = memory_in(tmp_path / "stopped"), np.random.default_rng(0)
    for memory, random in ((whole, rng), (stopped, other_rng)):
        memory.add(0, chunks(0, 15), random)
    state = {name: tensor.clone() for name, tensor in stopped.state_dict().items()}
    random_state = other_rng.bit_generator.state
    stopped.add(0, chunks(500, 20), other_rng)  # lost when the process is killed
    resumed = ReplayMemory(10)
    resumed.load_state_dict(state)
    resumed.open(tmp_path / "stopped")
    other_rng.bit_generator.state = random_state
    for memory, random in ((whole, rng), (resumed, other_rng)):
        memory.add(0, chunks(15, 20), random)
        memory.close_stage([0])
        memory.add(1, chunks(100, 3), random)
    assert kept(resumed) == kept(whole)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_is_small_and_no_chunk_is_in_it(tmp_path: Path):
    memory = memory_in(tmp_path, quota=1000)
    memory.add(0, chunks(0, 1000), np.random.default_rng(0))
    state = memory.state_dict()
    assert sum(t.numel() * t.element_size() for t in state.values()) < 17 * 1000


def test_a_closed_stage_is_one_file_and_the_rest_goes_a_stage_later(tmp_path: Path):
    memory, rng = memory_in(tmp_path), np.random.default_rng(0)
    for batch in range(6):
        memory.add(0, chunks(10 * batch, 10), rng)
    before = kept(memory)
    in_stage = memory.state_dict()
    memory.close_stage([0])
    assert kept(memory) == before
    places = memory.state_dict()["0/places"]
    assert len(places[:, 0].unique()) == 1
    older = ReplayMemory(10)  # goes on from before the stage was closed
    older.load_state_dict(in_stage)
    older.open(tmp_path)
    assert kept(older) == before

    memory.add(1, chunks(100, 10), rng)
    beginning = memory.state_dict()
    memory.close_stage([1])
    names = {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(names) == 2
    assert memory.num_bytes() == sum((tmp_path / name).stat().st_size for name in names)
    again = ReplayMemory(10)
    again.load_state_dict(beginning)
    again.open(tmp_path)
    assert kept(again) == before
    assert kept(memory, 1) == [*range(100, 110)]


def test_a_task_that_comes_again_goes_on_where_it_was(tmp_path: Path):
    memory, rng = memory_in(tmp_path), np.random.default_rng(0)
    memory.add(0, chunks(0, 10), rng)
    memory.close_stage([0])
    begun = memory.state_dict()
    memory.add(0, chunks(10, 30), rng)
    memory.close_stage([0])
    memory.close_stage([1])
    assert int(memory.state_dict()["0/num_seen"]) == 40
    assert len(kept(memory)) == 10
    older = ReplayMemory(10)
    older.load_state_dict(begun)
    with pytest.raises(CheckpointError, match=r"is not there|no such|000000"):
        older.open(tmp_path)  # two stages ago: nobody goes on from there


def test_a_memory_whose_files_are_damaged_or_gone_is_told(tmp_path: Path):
    memory = memory_in(tmp_path)
    memory.add(0, chunks(0, 5), np.random.default_rng(0))
    state = memory.state_dict()
    file = tmp_path / "000000.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x77")
    with pytest.raises(CheckpointError, match="is damaged: 000000.safetensors has the SHA-256"):
        memory.load_state_dict(state)
    file.write_bytes(content)
    memory.load_state_dict(state)
    wrong = state | {"0/places": torch.tensor([[0, 7]])}
    with pytest.raises(CheckpointError, match="000000.safetensors: has no record 7, .* task 0"):
        memory.load_state_dict(wrong)
    with pytest.raises(CheckpointError, match="memory: its state is not complete .*begun"):
        memory.load_state_dict({"next_file": torch.tensor(1)})


@pytest.mark.parametrize("has_sums", [True, False])
@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"nothing"),
    ],
)
def test_the_advice_for_a_damaged_memory_is_what_helps(
    tmp_path: Path, harm: Callable[[Path], None], has_sums: bool
):
    memory, rng = memory_in(tmp_path), np.random.default_rng(0)
    memory.add(0, chunks(0, 5), rng)
    memory.close_stage([0])
    begun = memory.state_dict()
    memory.add(1, chunks(100, 5), rng)
    in_stage = memory.state_dict()
    if not has_sums:
        (tmp_path / "SHA256SUMS").unlink()
    harm(tmp_path / "000001.safetensors")
    with pytest.raises(CheckpointError, match="000001.*; restore .*, or begin the stage again$"):
        memory.load_state_dict(in_stage)
    memory.load_state_dict(begun)  # so the stage can begin again
    assert kept(memory) == [*range(5)]
    harm(tmp_path / "000000.safetensors")
    for state in (begun, in_stage):
        with pytest.raises(CheckpointError, match="000000.*; restore .* begin the run again,"):
            memory.load_state_dict(state)


def test_what_is_not_there_cannot_be_drawn(tmp_path: Path):
    memory = memory_in(tmp_path)
    with pytest.raises(SpecError, match="memory: there are no chunks of task 2 to draw"):
        memory.draw(3, [2], np.random.default_rng(0), LIKE)
    with pytest.raises(SpecError, match="memory: 1 chunks of 2 tasks, expected at least one a ta"):
        memory.draw(1, [1, 2], np.random.default_rng(0), LIKE)
    memory.add(0, chunks(0, 3), np.random.default_rng(0))
    with pytest.raises(SpecError, match="holds the columns .*number.*int64.*, expected .*float32"):
        memory.draw(3, [0], np.random.default_rng(0), Chunk(torch.zeros(1)))
    with pytest.raises(ConfigError, match="memory: it has no folder yet; open it in before_task"):
        ReplayMemory(3).add(0, chunks(0, 3), np.random.default_rng(0))
