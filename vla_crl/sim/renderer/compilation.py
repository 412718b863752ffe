"""How the renderer's loops are compiled, and the float32 constants they share."""

from typing import Any

import numpy as np
from numba import njit

# NaN and infinity keep their meaning: a ray that misses is an infinite (or NaN) distance.
_FLAGS = {"contract", "nsz", "arcp", "reassoc"}
_OPTIONS: dict[str, Any] = {"fastmath": _FLAGS, "error_model": "numpy", "nogil": True}

compiled = njit(**_OPTIONS)
"""Decorator for loops."""

inlined = njit(forceinline=True, **_OPTIONS)
"""Decorator for the small formulas inside a loop; inlined so that the loop vectorises."""

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
