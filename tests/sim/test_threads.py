from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from vla_crl.sim.threads import made_once


def test_who_asks_meanwhile_waits_for_what_is_made():
    begun, finish, made = Event(), Event(), []

    @made_once
    def slow(name: str) -> str:
        begun.set()
        assert finish.wait(10)
        made.append(name)
        return f"a {name}"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(slow, "renderer")
        assert begun.wait(10)
        others = [pool.submit(slow, "renderer") for _ in range(3)]
        assert not any(other.done() for other in others)
        finish.set()
        assert {future.result() for future in (first, *others)} == {"a renderer"}
    assert made == ["renderer"]
    assert slow("table") == "a table"
    assert slow.__name__ == "slow"


def test_what_could_not_be_made_is_tried_again():
    tries = []

    @made_once
    def fragile() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("broken")
        return len(tries)

    with pytest.raises(ValueError, match="broken"):
        fragile()
    assert (fragile(), fragile()) == (2, 2)
