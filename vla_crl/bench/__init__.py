"""Measure speed, always beside a peer on the same machine in the same run."""
