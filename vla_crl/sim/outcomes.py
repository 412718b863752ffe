"""How an episode stands or ended: codes that every backend, compiled or not, gives its slots."""

RUNNING, SUCCESS, TIME_LIMIT, DIVERGED = 0, 1, 2, 3
MAX_SPEED = 200.0
"""A generalised velocity beyond this (m/s or rad/s) counts as diverged physics."""
