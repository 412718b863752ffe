"""Whether MuJoCo has room for the contacts of a world: where it has none, it ends the process."""

import mujoco
from numba import njit

from vla_crl.sim.stepped import view_integers, view_longs

CONTACTS_FULL = int(mujoco.mjtWarning.mjWARN_CONTACTFULL)
ROWS_FULL = int(mujoco.mjtWarning.mjWARN_CNSTRFULL)


@njit(nogil=True)
def _counts(scratch):
    """Return [warnings, 2] MuJoCo's last information and number of each kind of warning."""
    return view_integers(scratch.memory.warnings, (ROWS_FULL + 1, 2))


@njit(nogil=True)
def watch_memory(scratch):
    """Begin to watch how much memory is used, whatever the mjData has been through."""
    _counts(scratch)[:, 1] = 0
    view_longs(scratch.memory.most_used, (1,))[0] = 0


@njit(nogil=True)
def has_room(scratch):
    """Tell whether all contacts found room, and half of the memory was never in use.

    MuJoCo leaves contacts out where its memory is full, but ends the process where it is so nearly
    full that the solver finds no room. The other half is for what one more step may add.
    """
    counts = _counts(scratch)
    is_full = counts[CONTACTS_FULL, 1] > 0 or counts[ROWS_FULL, 1] > 0
    most_used = view_longs(scratch.memory.most_used, (1,))[0]
    return not is_full and 2 * most_used <= scratch.memory.size
