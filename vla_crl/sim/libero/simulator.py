"""What simulates a suite of LIBERO: we, or LIBERO itself."""

from collections.abc import Sequence
from typing import Any, cast

from vla_crl.contracts import Observation
from vla_crl.errors import ConfigError
from vla_crl.sim.calls import require_no_variation
from vla_crl.sim.foreign.foreign_episode import EpisodeSpec
from vla_crl.sim.foreign.foreign_sim import ForeignSim, RemoteEpisode
from vla_crl.sim.libero.config import NUM_TEST_STATES
from vla_crl.sim.libero.drawing import resized
from vla_crl.sim.libero.libero_sim import LiberoSim
from vla_crl.sim.libero.package import make_benchmark
from vla_crl.sim.libero.protocols import RESET_SEEDS
from vla_crl.sim.libero.suite import LiberoSuite
from vla_crl.sim.simulation import Indices, Simulation
from vla_crl.sim.variation import VariationConfig

_EPISODE = "vla_crl.sim.libero.original_episode:OriginalLiberoEpisode"


def simulate_libero(suite: LiberoSuite, num_slots: int, **settings: Any) -> Simulation:
    """Allocate slots of a suite; arguments as of `simulate`.

    Raises:
        ConfigError: As `LiberoSim` and `ForeignSim`.
    """
    return (OriginalSim if suite.is_original else LiberoSim)(suite, num_slots, **settings)


class OriginalSim(ForeignSim):
    """N slots of original LIBERO, in worker processes.

    Training states are LIBERO's own random ones, not those that are baked; with `shared_states`
    they are the official ones.
    """

    def __init__(
        self, suite: LiberoSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Start the processes; slots must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Worker processes.
            image_size: Height and width of each camera image, pixels.
            tasks: Which will be asked for; environments are made when they are.
            variation: None, or one that varies nothing.

        Raises:
            ConfigError: A package is missing, something is to vary, or the suite has tasks of
                several benchmarks.
        """
        require_no_variation(suite, variation)
        if len({task.benchmark for task in suite.tasks}) > 1:
            raise ConfigError(
                f"suite '{suite.name}': the original runs one benchmark at a time; name one of its "
                "parts"
            )
        protocol = suite.protocol
        seed, each = RESET_SEEDS[protocol.resets]
        first = suite.tasks[0].benchmark
        names = make_benchmark(first).get_task_names()
        spec = EpisodeSpec(
            episode=_EPISODE,
            arguments={
                "benchmark": first,
                "num_train_states": 0 if suite.shares_states else suite.num_train_states,
                "env_seed": seed,
                "reseeds": each,
                "num_wait_steps": protocol.wait_steps,
                "view": "rotated" if protocol.is_turned else "upright",
            },
            task_arguments=tuple({"index": names.index(task.name)} for task in suite.tasks),
        )
        self._pixels = image_size
        rendered = protocol.image_size or image_size
        super().__init__(suite, num_slots, spec, num_threads=num_threads, image_size=rendered)

    def begin(self, slot: int, task: int, state_id: int) -> RemoteEpisode:
        """Begin an episode in the worker of its slot."""
        suite = cast(LiberoSuite, self.suite)
        number = state_id % NUM_TEST_STATES if suite.shares_states else state_id
        return super().begin(slot, task, number)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Render as the protocol says, in the size that was asked for."""
        seen = super().observe(slots, images=images)
        if not images:
            return seen
        return Observation(resized(seen.images, self._pixels), seen.state, seen.instruction)
