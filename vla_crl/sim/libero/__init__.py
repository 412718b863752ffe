"""Suites of LIBERO (extra `libero`): its tasks, its robot, its official initial states."""
