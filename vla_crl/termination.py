"""SIGTERM, which clusters send before they take a machine away, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM
"""Of a program that SIGTERM ended: 143."""


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt no `Exception`, which somebody might go on after."""


@contextmanager
def telling_how_to_go_on(advice: str) -> Iterator[None]:
    """Raise `Terminated` wherever SIGTERM meets the block; on Ctrl-C and a full disk say the same.

    Args:
        advice: What the errors say.
    """

    def end(*_: object) -> None:
        raise Terminated(advice)

    with _handling_sigterm(end):
        try:
            yield
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(advice) from error
        except OSError as error:
            error.add_note(advice)
            raise


@contextmanager
def holding_sigterm() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM back until the block ends, for what should be finished first.

    Then it does what it would have done, where nothing else is said: end the process at once.

    Yields:
        Tells whether it has come.
    """
    came = threading.Event()
    with _handling_sigterm(lambda *_: came.set()):
        yield came.is_set
    if came.is_set():
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _handling_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    """Replace what SIGTERM does, in the main thread; no other may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
