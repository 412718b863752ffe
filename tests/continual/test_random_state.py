import numpy as np
import pytest
import torch

from vla_crl.continual.random_state import load_rng_state, rng_state
from vla_crl.errors import SpecError


@pytest.mark.parametrize("drawn", [0, 3])
def test_a_generator_goes_on_where_another_was(drawn: int):
    one, other = np.random.default_rng([3, 4]), np.random.default_rng(0)
    one.integers(7, size=drawn, dtype=np.uint32)  # an odd number leaves half of a draw
    state = rng_state(one)
    load_rng_state(other, state.clone())
    assert one.integers(2**62, size=5).tolist() == other.integers(2**62, size=5).tolist()
    assert one.integers(7, dtype=np.uint32) == other.integers(7, dtype=np.uint32)


def test_what_is_no_state_is_refused():
    with pytest.raises(SpecError, match=r"random state: got \[5\] int64, expected \[6\] int64"):
        load_rng_state(np.random.default_rng(0), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(SpecError, match=r"random state: got \[6\] float32, expected"):
        load_rng_state(np.random.default_rng(0), torch.zeros(6))
