"""What the comparisons of our simulations with their packages have in common."""

import numpy as np

from vla_crl.errors import ConfigError

MAX_DIFFERENCE = 1e-12
"""Between joint positions (m, rad) that count as the same."""


def drawn_tasks(where: str, num_tasks: int, count: int | None, seed: int) -> list[int]:
    """Return which of a suite's tasks are compared, in its order.

    Args:
        where: The command, for the message.
        num_tasks: How many there are.
        count: How many are drawn; all by default.
        seed: Of drawing.

    Raises:
        ConfigError: There are fewer.
    """
    if count is not None and not 1 <= count <= num_tasks:
        raise ConfigError(f"{where}: {count} tasks, expected 1 to {num_tasks}")
    return np.sort(np.random.default_rng(seed).permutation(num_tasks)[:count]).tolist()
