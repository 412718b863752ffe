"""Environments in worker processes: the contract, and what happens when they fail."""

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_crl.contracts import Embodiment
from vla_crl.errors import ConfigError, ForeignError, SpecError
from vla_crl.sim.backends import find_suite, simulate
from vla_crl.sim.foreign.foreign_sim import ForeignSim, simulate_foreign
from vla_crl.sim.foreign.suite import ForeignConfig, ForeignSuite, ForeignTaskConfig
from vla_crl.sim.simulation import Filmed, Resumable, Simulation
from vla_crl.sim.task_suite import SuiteTask
from vla_crl.sim.variation import VariationConfig
from vla_crl.testing import check_suite

WALKS = Path(__file__).parent / "walks"
HORIZON = 12
NewSim = Callable[..., ForeignSim]


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(WALKS)


def walks(episode: str = "foreign_walks:Walk", timeout_s: float = 60.0, **arguments: str):
    """Return a suite of two tasks: to walk right, and left."""
    tasks = (
        ForeignTaskConfig(name="right", instruction="walk to the right"),
        ForeignTaskConfig(name="left", instruction="walk to the left", arguments={"sign": -1.0}),
    )
    config = ForeignConfig(
        description="Walks.",
        backend="foreign",
        episode=episode,
        arguments=dict(arguments),
        embodiment=Embodiment(action=("dx",), state=("x", "y"), cameras=("top", "side")),
        control_hz=10.0,
        horizon=HORIZON,
        num_train_states=100,
        num_test_states=20,
        timeout_s=timeout_s,
        tasks=tasks,
    )
    return ForeignSuite(
        name="walks",
        description="Walks.",
        config=config,
        tasks=tuple(
            SuiteTask(name=task.name, instruction=task.instruction, split="train", horizon=HORIZON)
            for task in tasks
        ),
    )


@pytest.fixture
def new_sim() -> Iterator[NewSim]:
    sims: list[ForeignSim] = []

    def new_sim(num_slots: int, num_threads: int = 2, **settings: Any) -> ForeignSim:
        suite = walks(**settings)
        sims.append(simulate_foreign(suite, num_slots, num_threads=num_threads, image_size=8))
        return sims[-1]

    yield new_sim
    for sim in sims:
        sim.close()


def pid_of(sim: ForeignSim, worker: int = 0) -> int:
    return sim._workers[worker]._process.pid


def test_a_class_makes_a_suite_that_keeps_the_contract():
    lacks = check_suite(walks())
    assert [line.partition(":")[0] for line in lacks] == [
        "positions of things (Grounded)", "a scripted expert"
    ]  # fmt: skip


def test_a_suite_file_names_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "envs/mine"
    folder.mkdir(parents=True)
    monkeypatch.setenv("VLA_CRL_PATH", str(tmp_path))
    text = """
        description = "Walks."
        backend = "foreign"
        episode = "foreign_walks:Walk"
        film_camera = "behind"
        control_hz = 10
        horizon = 30
        num_train_states = 4
        num_test_states = 2
        embodiment = { action = ["dx"], state = ["x", "y"], cameras = ["top"] }

        [[tasks]]
        name = "left"
        instruction = "walk to the left"
        split = "heldout"
        horizon = 40
        arguments = { sign = -1.0 }
    """
    (folder / "suite.toml").write_text(text)
    suite = find_suite("mine")
    assert (suite.film_camera, suite.control_hz, suite.horizon) == ("behind", 10.0, 40)
    assert (suite.train_ids, suite.test_ids) == (range(4), range(4, 6))
    sim = simulate(suite, 1, image_size=16)
    assert isinstance(sim, Simulation)
    assert isinstance(sim, Filmed)
    assert isinstance(sim, Resumable)
    sim.reset([0], tasks=[0], state_ids=[0])
    assert sim.step_chunk(-np.ones((1, 20, 1))).success[0]
    assert sim.frames("behind", 4).shape == (1, 4, 4, 3)
    sim.close()
    for wrong, message in (
        (text.replace("control_hz = 10", "control_hz = 0"), "control_hz = 0.0, expected at least"),
        (text.replace("horizon = 40", "horizon = 0"), r"tasks\[0\]: horizon = 0, expected at"),
        (text.replace("num_train_states = 4", "num_train_states = 0"), "num_train_states = 0, exp"),
        (text.replace("control_hz", "timeout_s = 0.0\ncontrol_hz"), "timeout_s = 0.0, expected"),
        (text.partition("[[tasks]]")[0] + "tasks = []", "tasks: expected at least one task"),
        (text.replace("film_camera", "film_kamera"), "unknown key 'film_kamera'.* 'film_camera'"),
    ):
        (folder / "suite.toml").write_text(wrong)
        with pytest.raises(ConfigError, match=message):
            find_suite("mine")


def test_what_the_environment_says_does_not_reach_the_terminal(
    new_sim: NewSim, capfd: pytest.CaptureFixture[str]
):
    sim = new_sim(1)
    sim.reset([0], tasks=[0], state_ids=[0])
    assert capfd.readouterr() == ("", "")


def test_slots_of_a_worker_do_not_share_random_numbers(new_sim: NewSim):
    """In one process three environments draw from numpy's global generator, in turn."""
    alone, crowd = new_sim(1, num_threads=1), new_sim(3, num_threads=1)
    crowd.reset([0, 1, 2], tasks=[0, 1, 0], state_ids=[3, 4, 5])
    alone.reset([0], tasks=[0], state_ids=[5])
    for _ in range(3):
        crowd.step_chunk(np.full((3, 2, 1), 0.3))
        alone.step_chunk(np.full((1, 2, 1), 0.3))
    seen = crowd.observe([2]), alone.observe()
    assert np.array_equal(seen[0].state, seen[1].state)
    assert np.array_equal(seen[0].images, seen[1].images)
    assert not np.array_equal(crowd.observe([0]).state, seen[0].state)


def play(sim: ForeignSim) -> tuple[np.ndarray, np.ndarray]:
    """Play four slots to the end; return what is felt at last and how it ended."""
    sim.reset(range(4), tasks=[0, 1, 0, 1], state_ids=[0, 1, 2, 3])
    for steps in (3, 2):
        sim.step_chunk(np.full((4, steps, 1), 0.2))
    result = sim.step_chunk(np.full((4, 7, 1), 0.2))
    assert result.num_steps.tolist() == [7] * 4
    return sim.observe().state, result.truncated


@pytest.mark.parametrize(
    ("mishap", "words"),
    [
        ("hang", "has been busy for 2 s; if that is how long it takes, raise timeout_s in suite"),
        ("raise", r"raised RuntimeError: the wind is \(foreign_walks.py:\d+\)"),
        ("kill", "was killed by SIGSEGV; it last wrote: 'the last word'"),
        ("exit", "ended, code 3"),
    ],
)
def test_episodes_are_not_lost_when_a_worker_fails(
    mishap: str, words: str, new_sim: NewSim, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    state, truncated = play(new_sim(4))
    marker = tmp_path / "failed"
    failing = new_sim(4, mishap=mishap, marker=str(marker), timeout_s=2.0)
    with caplog.at_level(logging.WARNING):
        after_failure = play(failing)
    assert marker.exists()
    assert np.array_equal(after_failure[0], state)
    assert np.array_equal(after_failure[1], truncated)
    (record,) = caplog.records
    where = r"suite 'walks', worker 0 \(process \d+\) "
    last = r"Its last call: 'step' 1 in slot [02], task 'right', initial state [02]. It is started"
    assert re.match(f"{where}{words}.* {last}", record.getMessage())


@pytest.mark.parametrize("mishap", ["raise", "kill"])
def test_what_fails_twice_is_told_and_the_others_go_on(mishap: str, new_sim: NewSim):
    sim = new_sim(4, mishap=mishap)
    sim.reset(range(4), tasks=[0] * 4, state_ids=[0, 1, 3, 5])
    message = r"worker 0 \(.*'step' 6 in slot 0, task 'right', initial state 0. It did so when the"
    with pytest.raises(ForeignError, match=message):
        sim.step_chunk(np.full((4, 8, 1), 0.1))
    expected = new_sim(2)
    expected.reset([0, 1], tasks=[0, 0], state_ids=[1, 3])
    expected.step_chunk(np.full((2, 8, 1), 0.1))
    assert np.array_equal(sim.observe([1, 2]).state, expected.observe().state)
    result = sim.step_chunk(np.full((2, 2, 1), 0.1), [1, 2])
    assert result.num_steps.tolist() == [2, 2]


def test_a_worker_that_is_killed_between_calls_is_replaced(new_sim: NewSim):
    sim, same = new_sim(2, num_threads=1), new_sim(2, num_threads=1)
    for each in (sim, same):
        each.reset([0, 1], tasks=[0, 1], state_ids=[0, 1])
        each.step_chunk(np.ones((2, 3, 1)))
    os.kill(pid_of(sim), signal.SIGKILL)
    seen, expected = sim.observe(), same.observe()
    assert np.array_equal(seen.images, expected.images)
    assert np.array_equal(seen.state, expected.state)


@pytest.mark.parametrize("mishap", ["blow up", "infinite"])
def test_physics_that_blows_up_ends_the_episode_and_leaves_what_is_seen(
    mishap: str, new_sim: NewSim
):
    sim = new_sim(2, mishap=mishap)
    sim.reset([0, 1], tasks=[0, 0], state_ids=[0, 1])
    sim.step_chunk(np.full((2, 5, 1), 0.1))
    before = sim.observe()
    result = sim.step_chunk(np.full((2, 4, 1), 0.1))
    assert result.diverged.tolist() == [True, False]
    assert result.num_steps.tolist() == [0, 4]
    (divergence,) = sim.divergences
    cause = {"blow up": "the line is gone", "infinite": "feels numbers that are not finite"}
    assert cause[mishap] in divergence.cause
    after = sim.observe()
    assert np.array_equal(after.state[0], before.state[0])
    assert np.array_equal(after.images[0], before.images[0])
    assert np.array_equal(divergence.state["state"].astype(np.float32), before.state[0])


def test_an_environment_that_does_not_repeat_itself_is_found_out(new_sim: NewSim):
    sim = new_sim(1, mishap="forgetful")
    sim.reset([0], tasks=[0], state_ids=[1])
    sim.reset([0], tasks=[0], state_ids=[1])  # feels its second episode
    os.kill(pid_of(sim), signal.SIGKILL)
    with pytest.raises(SpecError, match=r"task 'right', initial state 1, slot 0: played again"):
        sim.step_chunk(np.zeros((1, 1, 1)))


def test_what_says_that_it_goes_on_may_take_longer_than_the_time_out(new_sim: NewSim):
    sim = new_sim(1, mishap="slow", timeout_s=1.0)
    before = time.monotonic()
    sim.reset([0], tasks=[0], state_ids=[1])
    assert time.monotonic() - before > 1.5


def test_a_chunk_that_is_refused_in_between_has_not_happened(new_sim: NewSim):
    sim = new_sim(1, mishap="refused in between")
    sim.reset([0], tasks=[0], state_ids=[0])
    sim.step_chunk(np.full((1, 4, 1), 0.1))
    before = sim.observe()
    with pytest.raises(ConfigError, match="there is no seventh step"):
        sim.step_chunk(np.full((1, 4, 1), 0.1))
    after = sim.observe()
    assert np.array_equal(after.images, before.images)
    assert np.array_equal(after.state, before.state)
    assert sim.step_chunk(np.full((1, 2, 1), 0.1)).num_steps[0] == 2


def test_refused_states_leave_the_episodes_that_run(new_sim: NewSim):
    sim = new_sim(2)
    sim.reset([0, 1], tasks=[0, 1], state_ids=[0, 1])
    sim.step_chunk(np.full((2, 4, 1), 0.2))
    seen, states = sim.observe(), sim.get_states()
    wrong = {name: array.copy() for name, array in states.items()}
    wrong["num_steps"][1], wrong["outcome"][1] = HORIZON, 0
    with pytest.raises(SpecError, match="task 'left' does not stand where its 12 steps"):
        sim.set_states(wrong)
    after = sim.observe()
    assert np.array_equal(after.images, seen.images)
    assert np.array_equal(after.state, seen.state)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"episode": "foreign_walks:Wolk"}, ConfigError, "'walks': unknown name in .* 'Wolk'"),
        ({"episode": "foreign_walk:Walk"}, ConfigError, "there is no module 'foreign_walk'; one"),
        ({"episode": "foreign_walks:NoEpisode"}, ConfigError, "'foreign_walks:NoEpisode' is no Fo"),
        ({"mishap": "refused"}, ConfigError, "there is no state 1"),
        ({"mishap": "broken"}, SpecError, "'right', initial state 1: its initial state is broken"),
        (
            {"mishap": "small"},
            ConfigError,
            r"'side'\] are uint8 \(2, 4, 4, 3\), expected uint8 \(2",
        ),
        (
            {"mishap": "at start"},
            ForeignError,
            r"raised ValueError: no \(.*'begin' in slot 0, task",
        ),
        ({"colour": "red"}, ForeignError, r"raised TypeError: .* keyword argument 'colour'"),
    ],
)
def test_what_cannot_be_played_is_refused(
    new_sim: NewSim, settings: dict[str, str], error: type[Exception], message: str
):
    def begin() -> None:
        sim = new_sim(1, **settings)
        sim.reset([0], tasks=[0], state_ids=[1])
        sim.observe()

    with pytest.raises(error, match=message):
        begin()


def test_a_state_of_another_width_is_refused(new_sim: NewSim, monkeypatch: pytest.MonkeyPatch):
    wide = Embodiment(action=("dx",), state=("x", "y", "z"), cameras=("top",))
    monkeypatch.setattr(ForeignSuite, "embodiment", wide)
    with pytest.raises(ConfigError, match=r"the state is float64 \(2,\), expected numbers \(3,\)"):
        new_sim(1).reset([0], tasks=[0], state_ids=[0])


def test_a_module_that_does_not_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_walks.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = (
        "suite 'walks': 'broken_walks:Walk' cannot be imported: .*/broken_walks.py:1: "
        "ModuleNotFoundError: No module named 'no_such_package'"
    )
    with pytest.raises(ConfigError, match=message):
        simulate_foreign(walks("broken_walks:Walk"), 1)


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
):
    suite = walks()
    monkeypatch.setitem(suite.config.packages, "no_such_package", "pip install 'such[package]'")
    with pytest.raises(
        ConfigError, match=r"suite 'walks' needs the package no_such_.*: pip install 'such\[pack"
    ):
        simulate(suite, 1)


def test_variations_are_refused():
    with pytest.raises(ConfigError, match="'walks': the backend 'foreign' has no variations"):
        simulate(walks(), 1, variation=VariationConfig(paraphrase=True))


def test_workers_end_with_their_simulation(new_sim: NewSim):
    sim = new_sim(2, mishap="hang")
    sim.reset([0, 1], tasks=[0, 0], state_ids=[1, 3])
    pids = [pid_of(sim, worker) for worker in (0, 1)]
    sim.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(SpecError, match="the simulation is closed"):
        sim.reset([0], tasks=[0], state_ids=[0])


def test_closing_does_not_wait_for_an_environment_that_hangs(new_sim: NewSim):
    sim = new_sim(1, mishap="hang")
    sim.reset([0], tasks=[0], state_ids=[0])
    with ThreadPoolExecutor(1) as pool:
        stepping = pool.submit(sim.step_chunk, np.zeros((1, 8, 1)))
        time.sleep(0.5)
        before = time.monotonic()
        sim.close()
        assert time.monotonic() - before < 10.0
        with pytest.raises(SpecError, match="the simulation is closed"):
            stepping.result()
