"""Streams that are closed or full, in processes of their own."""

import subprocess
import sys

import pytest


def run(command: str) -> subprocess.CompletedProcess[str]:
    shell = command.replace("vla-crl", f"{sys.executable} -m vla_crl")
    return subprocess.run(
        ["bash", "-c", shell], check=False, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("flags", ["", " --json"])
def test_a_full_output_is_one_line_and_a_mistake(flags: str) -> None:
    done = run(f"vla-crl list recipes{flags} > /dev/full")
    assert done.stderr == "vla-crl: error: standard output: No space left on device\n"
    assert done.returncode == 2


def test_a_closed_output_is_one_line_and_a_mistake() -> None:
    done = run("vla-crl list recipes >&-")
    assert done.stderr == "vla-crl: error: standard output: Bad file descriptor\n"
    assert done.returncode == 2


def test_who_stops_reading_gets_no_error() -> None:
    done = run("vla-crl list recipes | true; exit ${PIPESTATUS[0]}")
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0: all had been written before


def test_files_do_not_get_the_numbers_of_closed_streams() -> None:
    program = (
        "from vla_crl.cli.standard_streams import open_closed_streams; open_closed_streams();"
        "import sys; print('told', file=sys.stderr); sys.stdin.read(); sys.exit(open('/').fileno())"
    ).replace("open('/')", "open('/etc/hostname')")
    done = run(f'{sys.executable} -c "{program}" <&- >&- 2>&-')
    assert done.returncode == 3
    assert done.stdout == done.stderr == ""
