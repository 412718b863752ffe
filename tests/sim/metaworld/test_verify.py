"""Our simulation beside Meta-World's own environments: the same states, successes and ends."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

pytest.importorskip("metaworld", reason="pip install --editable '.[metaworld]'")
pytest.importorskip("imageio", reason="pip install --editable '.[metaworld]'")

from vla_crl.errors import ConfigError
from vla_crl.sim.backends import find_suite
from vla_crl.sim.metaworld import metaworld_sim
from vla_crl.sim.metaworld.metaworld_sim import MetaWorldSim
from vla_crl.sim.metaworld.suite import MetaWorldSuite
from vla_crl.sim.metaworld.verify import NUM_STATES, SUITE, Row, compare, table, verify

MIN_SUCCESSES = 0.1
"""Least share of perturbed states that are a success; without some nothing would be compared."""
ONE_OF_EACH_KIND = (
    "dial-turn-v3", "basketball-v3", "lever-pull-v3", "hammer-v3", "disassemble-v3", "assembly-v3",
    "stick-pull-v3", "stick-push-v3",
)  # fmt: skip
"""Tasks that together have every kind of success and every special place."""


@pytest.fixture(scope="module")
def sim() -> Iterator[MetaWorldSim]:
    sim = MetaWorldSim(cast(MetaWorldSuite, find_suite(SUITE)), NUM_STATES)
    yield sim
    sim.close()


@pytest.mark.parametrize("task", ONE_OF_EACH_KIND)
def test_a_task_is_bit_for_bit_meta_worlds(sim: MetaWorldSim, task: str):
    row = compare(sim, sim.suite.task_index(task), seed=1)
    assert row.agrees, row
    assert row.max_abs_dqpos == 0.0
    assert row.num_successes > MIN_SUCCESSES * row.num_states
    assert row.num_solved


@pytest.mark.slow
def test_all_tasks_are_meta_worlds():
    rows = verify()
    assert len(rows) == 50
    assert [row for row in rows if not row.agrees] == []
    assert all(row.num_successes > MIN_SUCCESSES * row.num_states for row in rows)


def test_a_wrong_success_condition_is_found_out(sim: MetaWorldSim, monkeypatch: pytest.MonkeyPatch):
    right = metaworld_sim.constants_of

    def wrong(task: str, horizon: int):
        constants = right(task, horizon)
        success = constants.success._replace(limit=0.8 * constants.success.limit)
        return constants._replace(success=success)

    monkeypatch.setattr(metaworld_sim, "constants_of", wrong)
    row = compare(sim, sim.suite.task_index("push-v3"), seed=1)
    assert row.num_agreed < row.num_states
    assert row.num_same_end < row.num_episodes
    assert row.max_abs_dqpos == 0.0
    assert not row.agrees


def test_a_wrong_hand_is_found_out(sim: MetaWorldSim, monkeypatch: pytest.MonkeyPatch):
    right = metaworld_sim.constants_of
    monkeypatch.setattr(
        metaworld_sim, "constants_of",
        lambda task, horizon: right(task, horizon)._replace(action_scale=0.0101),
    )  # fmt: skip
    row = compare(sim, sim.suite.task_index("reach-v3"), seed=1)
    assert row.max_abs_dqpos > 1e-12
    assert row.max_abs_dobserved > 1e-12
    assert not row.agrees


def test_some_tasks_are_drawn_with_the_seed():
    (row,) = verify(tasks=1, seed=5)
    assert row.agrees
    assert verify(tasks=1, seed=5) == [row]


@pytest.mark.parametrize("tasks", [0, 51])
def test_a_number_of_tasks_that_there_is_not_is_refused(tasks: int):
    with pytest.raises(ConfigError, match=f"verify metaworld: {tasks} tasks, expected 1 to 50"):
        verify(tasks=tasks)


def test_the_table_has_a_line_for_every_task():
    row = Row("push-v3", 0.0, 2.2e-16, 192, 60, 191, 2, 2, 1)
    assert not row.agrees
    assert replace(row, num_agreed=192, num_same_end=2).agrees
    assert not replace(row, num_agreed=192, num_same_end=2, max_abs_dqpos=2e-12).agrees
    lines = table([row, replace(row, task="reach-v3")]).splitlines()
    assert lines[2] == "| `push-v3` | 0.0e+00 | 2.2e-16 | 191 of 192 | 60 | 1 of 2 | 2 |"
    assert lines[3].startswith("| `reach-v3` |")
    assert len({line.count("|") for line in lines}) == 1
