import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from vla_crl.termination import EXIT_CODE, Terminated, holding_sigterm, telling_how_to_go_on


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_exit_code_is_that_of_a_shell() -> None:
    assert EXIT_CODE == 143


def test_sigterm_raises_where_it_meets_the_block_and_only_there() -> None:
    before, done = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with telling_how_to_go_on("go on with: make"):
            terminate()
            done.append("after the signal")

    with pytest.raises(Terminated, match="go on with: make"):
        work()
    assert not done
    assert signal.getsignal(signal.SIGTERM) == before
    assert not issubclass(Terminated, Exception)


def test_sigterm_is_held_back_until_the_block_ends() -> None:
    done = []

    def work() -> None:
        with telling_how_to_go_on("advice"), holding_sigterm() as has_come:
            done.append(has_come())
            terminate()
            done.append(has_come())

    with pytest.raises(Terminated, match="advice"):
        work()
    assert done == [False, True]


def test_without_sigterm_nothing_happens() -> None:
    with telling_how_to_go_on("advice"), holding_sigterm() as has_come:
        assert not has_come()


def test_an_error_in_the_block_is_not_replaced_by_the_signal() -> None:
    def work() -> None:
        with telling_how_to_go_on("advice"), holding_sigterm():
            terminate()
            raise ValueError("real")

    with pytest.raises(ValueError, match="real"):
        work()


def test_where_nothing_else_is_said_sigterm_ends_the_process_after_the_block() -> None:
    code = (
        "import os, signal\nfrom vla_crl.termination import holding_sigterm\n"
        "with holding_sigterm():\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('done', flush=True)\n"
        "print('never')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "done\n")


def test_other_threads_leave_the_signal_alone() -> None:
    found = []

    def work() -> None:
        with telling_how_to_go_on("advice"), holding_sigterm() as has_come:
            found.append((signal.getsignal(signal.SIGTERM), has_come()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGTERM), False)]


def test_a_full_disk_tells_how_to_go_on() -> None:
    with (
        pytest.raises(OSError, match="No space") as caught,
        telling_how_to_go_on("go on with: make"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.__notes__ == ["go on with: make"]
