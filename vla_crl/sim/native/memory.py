"""MuJoCo's memory for contacts: how much a scene gets, and whether it was enough."""

import mujoco

from vla_crl.sim.native.kernel.memory import CONTACTS_FULL, ROWS_FULL

LEAST_BYTES = 64 << 20
BYTES_PER_GEOM = 1 << 20
"""Room for some hundred contacts of each geom. The system hands out pages when they are first
written, so that what is not needed costs nothing."""


def wanted_bytes(model: mujoco.MjModel) -> int:
    """Return how much memory for contacts a scene is to have, if its file does not say more."""
    return max(model.narena, LEAST_BYTES, BYTES_PER_GEOM * (model.ngeom + model.nflexvert))


def shortage(model: mujoco.MjModel, data: mujoco.MjData) -> str | None:
    """Say what to change where the last chunk did not find the memory it needs; None if it did."""
    is_full = data.warning.number[[CONTACTS_FULL, ROWS_FULL]].any()
    if not is_full and data.maxuse_arena <= model.narena // 2:
        return None
    return (
        f"its contacts need more than half of MuJoCo's {model.narena >> 10} KiB of memory; move "
        f'apart what overlaps, or write <size memory="{4 * model.narena >> 10}K"/> into the scene'
    )
