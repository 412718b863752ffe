import dataclasses

import pytest

from vla_crl.bench.record import against_peer, alone, print_table
from vla_crl.errors import SpecError
from vla_crl.hardware import hardware_name


def test_the_ratio_is_value_over_peer() -> None:
    record = against_peer("render", 42_000.0, "frames/s", "mujoco.Renderer", 350.0, goal=30)
    assert record.ratio == 120.0
    assert record.met is True
    assert record.hardware == hardware_name()


@pytest.mark.parametrize(("goal", "met"), [(0.6, True), (0.61, False), (None, None)])
def test_a_goal_is_met_from_its_own_value_on(goal: float | None, met: bool | None) -> None:
    assert against_peer("sim", 6.0, "steps/s", "mj_step", 10.0, goal=goal).met is met


@pytest.mark.parametrize(("goal", "met"), [(0.6, True), (0.59, False), (None, None)])
def test_a_cost_meets_a_goal_from_below(goal: float | None, met: bool | None) -> None:
    cost = against_peer("memory", 6.0, "MiB", "limit", 10.0, goal=goal, goal_kind="at most")
    assert cost.ratio == 0.6
    assert cost.met is met


def test_a_number_without_a_peer_has_no_ratio() -> None:
    record = alone("memory", 6.0, "MiB")
    assert (record.value, record.peer, record.ratio, record.goal) == (6.0, None, None, None)
    assert record.met is None


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_peer_without_a_rate_is_an_error(value: float) -> None:
    with pytest.raises(SpecError, match="sim: peer 'mj_step' measured .*, expected more than 0"):
        against_peer("sim", 6.0, "steps/s", "mj_step", value)


def test_a_record_has_the_fields_that_readers_of_the_json_expect() -> None:
    assert dataclasses.asdict(against_peer("a", 3.0, "1/s", "b", 2.0, goal=1.0)) == {
        "name": "a",
        "value": 3.0,
        "unit": "1/s",
        "peer": "b",
        "peer_value": 2.0,
        "ratio": 1.5,
        "goal": 1.0,
        "goal_kind": "at least",
        "hardware": hardware_name(),
    }


def test_the_table_shows_rates_ratio_and_goal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    missed = against_peer("a", 1_234.5, "1/s", "peer", 2_469.0, goal=0.6)
    cost = against_peer("c", 1.0, "MiB", "limit", 2.0, goal=1.0, goal_kind="at most")
    print_table([missed, against_peer("b", 1.0, "1/s", "peer", 2.0), cost, alone("d", 7.0, "MiB")])
    text = capsys.readouterr().out
    assert "1,234.5" in text
    assert "0.50" in text
    assert ">= 0.6 missed" in text
    assert "<= 1 met" in text
    assert "7.0" in text


def test_nothing_is_cut_off_in_a_narrow_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "sim.tabletop_object.pixels.vs_AsyncVectorEnv_chunked"
    print_table([against_peer(name, 1.0, "steps/s", "AsyncVectorEnv, 16 processes", 2.0, goal=10)])
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert "".join(cells) == name


def test_an_empty_table_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([])
    assert "benchmark" in capsys.readouterr().out
