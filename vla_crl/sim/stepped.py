"""What the kernels of all rooms of worlds do alike: read an MjData, wake it, watch its speeds."""

from typing import NamedTuple

import numpy as np
from numba import carray, njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.mujoco_c import (
    as_double_pointer,
    as_int_pointer,
    as_long_pointer,
    mj_update_sleep,
)
from vla_crl.sim.outcomes import MAX_SPEED
from vla_crl.sim.packed_state import FALLS_ASLEEP_NEXT

SOURCES = ("stepped.py", "mujoco_c.py", "outcomes.py", "packed_state.py")
"""Files that a kernel that uses this is compiled from, for `source_version`."""


class Progress(NamedTuple):
    """Where the episodes stand.

    Attributes:
        task: [N] task index.
        num_steps: [N] control steps since the episode began.
        outcome: [N] outcome code.
    """

    task: np.ndarray
    num_steps: np.ndarray
    outcome: np.ndarray


@njit(nogil=True)
def view(address, shape):
    """Return an array of doubles that lies at an address."""
    return carray(as_double_pointer(address), shape)  # pyright: ignore[reportCallIssue]


@njit(nogil=True)
def view_integers(address, shape):
    """Return an array of 32-bit integers that lies at an address."""
    return carray(as_int_pointer(address), shape)  # pyright: ignore[reportCallIssue]


@njit(nogil=True)
def view_longs(address, shape):
    """Return an array of 64-bit integers that lies at an address."""
    return carray(as_long_pointer(address), shape)  # pyright: ignore[reportCallIssue]


@njit(nogil=True)
def rouse(scratch, still):
    """Wake all that sleeps for one step: a slot must not depend on what else its MjData holds.

    What slept and is touched by nothing that moves sleeps on after it.

    Args:
        scratch: A thread's model and data.
        still: [trees] its `tree_asleep`.
    """
    for tree in range(still.size):
        still[tree] = min(still[tree], FALLS_ASLEEP_NEXT)
    mj_update_sleep(scratch.model, scratch.data)


@njit(nogil=True)
def is_healthy(velocities):
    """Tell whether no velocity is absurdly large or NaN."""
    for velocity in velocities:  # noqa: SIM110 - numba compiles no generator expressions
        if not abs(velocity) < MAX_SPEED:  # also catches NaN
            return False
    return True


@njit(nogil=True)
def cholesky(matrix):
    """Replace the lower triangle of a positive definite matrix by its root."""
    n = matrix.shape[0]
    for j in range(n):
        for k in range(j):
            for i in range(j, n):
                matrix[i, j] -= matrix[i, k] * matrix[j, k]
        diagonal = np.sqrt(matrix[j, j])
        for i in range(j, n):
            matrix[i, j] /= diagonal


@njit(nogil=True)
def solve_positive_definite(matrix, vector):
    """Overwrite `vector` with matrix^-1 vector by Cholesky factorisation (both are overwritten)."""
    n = vector.shape[0]
    cholesky(matrix)
    for i in range(n):
        for k in range(i):
            vector[i] -= matrix[i, k] * vector[k]
        vector[i] /= matrix[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            vector[i] -= matrix[k, i] * vector[k]
        vector[i] /= matrix[i, i]
