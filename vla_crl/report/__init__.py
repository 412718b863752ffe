"""What comes out of runs: the page, tables, plots, films, and data frames for one's own analysis.

`frame` and `iterations` are for notebooks; the rest is behind the command line.
"""

from vla_crl.report.frames import frame, iterations

__all__ = ["frame", "iterations"]
