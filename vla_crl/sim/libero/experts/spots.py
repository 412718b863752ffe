"""Where exactly a thing is put: what it comes to stand on, and whether the goal then holds."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_crl.sim.libero.experts.grips import HAND_M, HAND_WIDTH_M, PALM_M
from vla_crl.sim.libero.experts.shapes import CUBE_M
from vla_crl.sim.libero.experts.view import View
from vla_crl.sim.libero.kernel.goals import HEIGHT_M, SINK_M

CELL_M = 0.01
REACH_M = 0.35
"""Half the side of the square of which a surface knows the height."""
SPREAD_M = 0.02
"""Distance of the spots that are tried."""
MARGIN = 0.7
"""Part of a site's size that is used."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a term of a goal wants a thing.

    Attributes:
        kind: What the term says of a thing's origin.
        target: Body ("thing") or site.
        size: [3] half sizes of a site, m.
        rank: [2] which one of how many things that go there it is.
    """

    kind: Literal["on_thing", "on_site", "in_site"]
    target: int
    size: np.ndarray
    rank: tuple[int, int] = (0, 1)

    def centre(self, view: View) -> np.ndarray:
        """Return the middle [3] of the place, m, world."""
        if self.kind == "on_thing":
            return view.pos[self.target]
        return view.site(self.target)[0]

    def holds(self, view: View, origin: np.ndarray) -> bool:
        """Tell whether a thing whose origin is at [3] is there, with a margin."""
        if self.kind == "on_thing":
            return bool(np.hypot(*(origin - self.centre(view))[:2]) < 0.02)
        centre, turn = view.site(self.target)
        if self.kind == "in_site":
            half = np.abs(turn @ self.size)
            return bool((np.abs(origin - centre)[:2] < MARGIN * half[:2]).all())
        offset = turn @ (origin - centre)
        is_high = self.size[2] - SINK_M / 2 < offset[2] < self.size[2] + 0.9 * HEIGHT_M
        return bool(is_high and (np.abs(offset)[:2] < MARGIN * self.size[:2]).all())


class Surface:
    """What a scene looks like from above, without one thing: heights (m, world) of cells."""

    def __init__(self, view: View, thing: int, centre: np.ndarray) -> None:
        """Look at the surroundings of a point [3]."""
        self._corner = centre[:2] - REACH_M
        size = int(2 * REACH_M / CELL_M)
        floor = min(view.bounds(body)[0, 2] for body in view.shapes.cubes) - CUBE_M / 2
        self._top = np.full((size, size), floor)
        bodies = []
        for body in view.shapes.cubes:
            low, high = view.bounds(body)[:, :2] - self._corner
            if view.shapes.root[body] != thing and (high > 0).all() and (low < 2 * REACH_M).all():
                bodies.append(body)
        points = view.cloud(bodies)
        cells = np.floor((points[:, :2] - self._corner) / CELL_M).astype(int)
        inside = ((cells >= 0) & (cells < size)).all(axis=1)
        np.maximum.at(self._top, tuple(cells[inside].T), points[inside, 2])

    def height_under(self, shape: np.ndarray, place: np.ndarray) -> float:
        """Return the height of the origin of a thing that comes to stand there.

        Args:
            shape: [n, 3] its cubes, from its origin, as it is turned.
            place: [2] m, world, of its origin.
        """
        cells = np.floor((shape[:, :2] + place - self._corner) / CELL_M).astype(int)
        cells = np.clip(cells, 0, len(self._top) - 1)
        gaps = self._top[tuple(cells.T)] - shape[:, 2]
        return float(gaps.max()) + CUBE_M

    def palm(self, view: View, target: np.ndarray) -> float:
        """Return the least height of the grip point over a target so that the palm is free."""
        rows = np.argwhere(self._top > target[2] - 1.0)
        beside = (self._corner + (rows + 0.5) * CELL_M - target[:2]) @ view.hand[:2, :2]
        is_below = (np.abs(beside[:, 0]) < HAND_M) & (np.abs(beside[:, 1]) < HAND_WIDTH_M)
        return float(self._top[tuple(rows[is_below].T)].max(initial=-np.inf)) - PALM_M + 0.012


def best_spot(view: View, thing: int, place: Place, surface: Surface) -> np.ndarray:
    """Return where [2] (m, world) the origin of a thing that is held best goes."""
    centre, shape = place.centre(view), view.thing(thing) - view.pos[thing]
    index, count = place.rank
    middle = centre[:2].copy()
    if place.kind != "on_thing":
        half = np.abs(view.site(place.target)[1] @ place.size)[:2]
        longest = int(np.argmax(half))
        middle[longest] += (2 * index - count + 1) / count * MARGIN * half[longest]
    else:
        half = np.zeros(2)
    best, best_cost = middle, np.inf
    steps = [np.arange(-(h // SPREAD_M), h // SPREAD_M + 1) * SPREAD_M for h in half]
    around = [centre[:2] + np.array([x, y]) for x in steps[0] for y in steps[1]]
    for spot in [middle, *around]:
        height = surface.height_under(shape, spot)
        cost = 2.0 * np.hypot(*(spot - middle)) + max(height - centre[2], -0.2)
        cost += 10.0 * (not place.holds(view, np.append(spot, height)))
        if cost < best_cost - 1e-9:
            best, best_cost = spot, cost
    return best
