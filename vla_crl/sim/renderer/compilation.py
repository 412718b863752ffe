"""How the renderer's loops are compiled, and the float32 constants they share."""

from typing import Any

import numpy as np
from numba import njit

# NaN and infinity keep their meaning: a ray that misses is an infinite (or NaN) distance.
_FLAGS = {"contract", "nsz", "arcp", "reassoc"}
_OPTIONS: dict[str, Any] = {"fastmath": _FLAGS, "error_model": "numpy", "nogil": True}

# Without numba's reference counts: two atomic operations for every array that a call is given or
# reads from a tuple, which in the loop over the pixels cost more than the arithmetic. Such a
# function can neither make an array (numba says so) nor return one (numba does not say so).
_UNCOUNTED: dict[str, Any] = {**_OPTIONS, "_nrt": False}

inlined = njit(forceinline=True, **_UNCOUNTED)
"""Decorator for loops and formulas: part of the entry point that calls them, so that loops over
pixels vectorise. And so that pictures do not depend on who compiled: of a function of its own there
would be two versions, rounded differently, one beside the entry point's machine code on the disk
and one, which counts, in the process that has just compiled it."""

array_maker = njit(**_OPTIONS)
"""Decorator for what makes or returns arrays."""

entry_point = njit(cache=True, **_OPTIONS)
"""Decorator for what Python calls; the machine code, callees included, is cached on disk.

An entry point must use `source_version()` through a closure, see there.
"""


# A Python literal would make numba compute in float64, at half the width of a vector register.
ZERO = np.float32(0.0)
HALF = np.float32(0.5)
ONE = np.float32(1.0)
TINY = np.float32(1e-12)
MISS = np.float32(np.inf)
