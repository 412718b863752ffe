"""Train and benchmark robot policies that keep learning."""

import os

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    # Threads of torch spin while they wait for each other, milliseconds by default: on cores that
    # do something else too an update then takes ten times as long. This many turns are enough on
    # idle ones. Has an effect as long as torch is not imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
