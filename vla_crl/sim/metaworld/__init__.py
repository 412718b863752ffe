"""Suites of Meta-World (extra `metaworld`): its tasks, its physics, its scripted policies.

What is ours: initial states with numbers, compiled stepping in action chunks, pictures by the
project's renderer. `verify` shows that states and successes are the package's.
"""
