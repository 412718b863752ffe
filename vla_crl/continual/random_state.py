"""States of numpy's random generators as tensors."""

import numpy as np
import torch
from torch import Tensor

from vla_crl.errors import SpecError

_WORD = 2**64
_NUMBERS = 6


def rng_state(rng: np.random.Generator) -> Tensor:
    """Return the state of a generator that `numpy.random.default_rng` made, [6] int64."""
    state = rng.bit_generator.state
    inner = state["state"]
    numbers = [*divmod(inner["state"], _WORD), *divmod(inner["inc"], _WORD)]
    numbers += [state["has_uint32"], state["uinteger"]]
    return torch.from_numpy(np.array(numbers, np.uint64).view(np.int64))


def load_rng_state(rng: np.random.Generator, state: Tensor) -> None:
    """Put a generator into a state that `rng_state` returned.

    Raises:
        SpecError: It is none.
    """
    if state.shape != (_NUMBERS,) or state.dtype != torch.int64:
        came = f"{list(state.shape)} {str(state.dtype).removeprefix('torch.')}"
        raise SpecError(f"random state: got {came}, expected [{_NUMBERS}] int64")
    high, low, inc_high, inc_low, has_uint32, uinteger = map(int, state.numpy().view(np.uint64))
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high * _WORD + low, "inc": inc_high * _WORD + inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
