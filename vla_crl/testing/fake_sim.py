"""The worlds of `fake_worlds`: a hand, squares, pictures of them, and an expert."""

from collections.abc import Sequence

import numpy as np

from vla_crl.errors import SpecError, unknown_name
from vla_crl.sim.calls import begun_slots, require_no_variation
from vla_crl.sim.episode_sim import EpisodeSim, PhysicsError
from vla_crl.sim.simulation import (
    NO_THING,
    CameraPoses,
    Filmed,
    Grounded,
    Indices,
    Resumable,
    Simulation,
)
from vla_crl.sim.variation import VariationConfig
from vla_crl.testing.fake_worlds import FakeSuite
from vla_crl.testing.limited import Limited

RGB = {
    "red": (230, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 240), "yellow": (230, 220, 30),
}  # fmt: skip
TABLE_RGB, HAND_RGB = (90, 90, 90), (255, 255, 255)
EXTRAS: dict[str, type] = {"Grounded": Grounded, "Filmed": Filmed, "Resumable": Resumable}
REACH = 0.9
"""The hand, and where squares lie: -REACH to REACH in x and y (m)."""
STEP = 0.2
"""How far an action of 1 moves the hand (m)."""
NEAR = 0.18
"""A square is reached when the hand is as near in x and in y (m); also half its edge."""
HAND_EDGE = 0.06
"""Half the edge of the hand (m)."""
CAMERA_HEIGHT, CAMERA_FOVY_RAD = 2.0, 2 * np.arctan(0.55)
"""All cameras look straight down, each turned by a quarter from the one before: 1.1 m to each
side (m, rad)."""


def layout(suite: FakeSuite, state_id: int) -> np.ndarray:
    """Return where the hand and, after it, the squares begin: [1 + squares, 2] m, well apart."""
    rng, num = np.random.default_rng(state_id), 1 + len(suite.things)
    while True:
        places = rng.uniform(-REACH, REACH, (num, 2))
        gaps = np.abs(places[:, None] - places).max(axis=-1) + np.eye(num)
        if gaps.min() > 2.5 * NEAR:
            return places


class FakeEpisode:
    """A hand on its way to a square."""

    def __init__(self, suite: FakeSuite, task: int, state_id: int) -> None:
        """Put the hand where the initial state has it."""
        self.hand, *squares = layout(suite, state_id)
        """[2] m."""
        self.squares = np.array(squares)
        """[squares, 2] m."""
        self._target, self._suite = squares[task], suite
        self._blows_up = state_id in suite.config.blows_up

    def step_chunk(self, actions: np.ndarray, max_steps: int) -> tuple[bool, int]:
        """Move the hand until it reaches the task's square, see `Episode`."""
        width, greatest = len(self._suite.embodiment.action), np.abs(actions).max()
        if actions.shape[1:] != (width,) or greatest > 1:
            raise SpecError(
                f"FakeEpisode: got actions {actions.shape} up to {greatest:.3g}, expected "
                f"[K, {width}] in [-1, 1]"
            )
        if self._blows_up:
            raise PhysicsError("the table is gone", {"hand": self.hand.copy()})
        for step, action in enumerate(actions[:max_steps, self._suite.moving], start=1):
            self.hand = np.clip(self.hand + STEP * action, -REACH, REACH)
            if np.abs(self.hand - self._target).max() <= NEAR:
                return True, step
        return False, min(max_steps, len(actions))

    def state(self) -> np.ndarray:
        """Return [S] where the hand is, and zeros."""
        return np.concatenate([self.hand, np.zeros(len(self._suite.embodiment.state) - 2)])


class FakeSim(EpisodeSim[FakeSuite, FakeEpisode]):
    """N tables, each with a hand; it can do everything, see `Limited`."""

    def begin(self, slot: int, task: int, state_id: int) -> FakeEpisode:
        """Begin an episode."""
        return FakeEpisode(self.suite, task, state_id)

    def draw(
        self, task: int, episodes: Sequence[FakeEpisode], cameras: tuple[str, ...], pixels: int
    ) -> np.ndarray:
        """Draw the squares and over them the hand: [B, cameras, pixels, pixels, 3]."""
        known, colours = self.suite.embodiment.cameras, self.suite.config.colours
        images = np.empty((len(episodes), len(cameras), pixels, pixels, 3), np.uint8)
        images[:] = TABLE_RGB
        for camera, name in enumerate(cameras):
            if name not in known:
                raise unknown_name("FakeSim", "camera", name, known)
            turn = _turned(known.index(name))[:2, :2]
            for image, episode in zip(images[:, camera], episodes, strict=True):
                for place, colour in zip(episode.squares @ turn, colours, strict=True):
                    _fill(image, place, NEAR, RGB[colour])
                _fill(image, episode.hand @ turn, HAND_EDGE, HAND_RGB)
        return images

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, squares, 3] positions (m, world); the table is at height 0."""
        squares = [self.episode(row).squares for row in begun_slots(self, slots).tolist()]
        return np.pad(np.reshape(squares, (-1, len(self.suite.things), 2)), [(0, 0)] * 2 + [(0, 1)])

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are: all above the middle of the table."""
        num, cameras = len(begun_slots(self, slots)), len(self.suite.embodiment.cameras)
        return CameraPoses(
            position=np.tile([0.0, 0.0, CAMERA_HEIGHT], (num, cameras, 1)),
            rotation=np.tile(np.stack([_turned(i) for i in range(cameras)]), (num, 1, 1, 1)),
            fovy_rad=np.full((num, cameras), CAMERA_FOVY_RAD),
        )


def make_sim(
    suite: FakeSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
    tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
) -> Simulation:  # fmt: skip
    """Allocate slots of a suite, with the extras that it says; see `EpisodeSim`.

    Raises:
        ConfigError: A count is no whole number from 1 on, or something is to vary.
    """
    require_no_variation(suite, variation)
    sim = FakeSim(suite, num_slots, num_threads=num_threads, image_size=image_size)
    extras = suite.config.extras
    if set(extras) == set(EXTRAS):
        return sim
    return Limited(sim, [EXTRAS[name] for name in extras])


class FakeExpert:
    """Goes straight to the square."""

    def __init__(self, sim: Simulation) -> None:
        """Prepare for a simulation of a fake suite."""
        if not isinstance(sim.suite, FakeSuite):
            raise SpecError(f"FakeExpert: got a suite '{sim.suite.name}', expected a FakeSuite")
        self._sim, self._suite = sim, sim.suite

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the next action [B, A] in each of `slots`; binary numbers are -1."""
        robot, sim = self._suite.embodiment, self._sim
        hand = sim.observe(slots, images=False).state[:, :2]
        pairs = zip(sim.tasks[slots], sim.state_ids[slots], strict=True)
        target = [layout(self._suite, state_id)[1 + task] for task, state_id in pairs]
        actions = np.zeros((len(slots), len(robot.action)))
        actions[:, self._suite.moving] = (np.reshape(target, (-1, 2)) - hand) / STEP
        actions[:, robot.is_binary] = -1.0
        return np.clip(actions, -1.0, 1.0)

    def named(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 2] the square to be reached, and NO_THING."""
        tasks = self._sim.tasks[slots]
        return np.stack([tasks, np.full_like(tasks, NO_THING)], axis=1)


def _turned(camera: int) -> np.ndarray:
    """Return the rotation [3, 3] of a camera's frame."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[camera % 4]
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def _fill(image: np.ndarray, place: np.ndarray, half: float, rgb: tuple[int, int, int]) -> None:
    """Fill a square, given in a camera's frame, with a colour; at least one pixel."""
    scale = 0.5 / (CAMERA_HEIGHT * np.tan(CAMERA_FOVY_RAD / 2))
    middle = 0.5 + scale * place * (1, -1)  # right and down, in image widths
    first = np.floor((middle - scale * half) * len(image)).astype(int).clip(0)
    stop = np.maximum(np.ceil((middle + scale * half) * len(image)).astype(int), first + 1)
    image[first[1] : stop[1], first[0] : stop[0]] = rgb
