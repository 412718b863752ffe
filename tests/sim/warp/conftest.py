"""Warp's kernels compile in a minute without optimisation, in four with it."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _compile_quickly() -> Iterator[None]:
    wp = pytest.importorskip("warp", reason="pip install --editable '.[warp]'")
    before = wp.config.optimization_level
    wp.config.optimization_level = 0
    yield
    wp.config.optimization_level = before
