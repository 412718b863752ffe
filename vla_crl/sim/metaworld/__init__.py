"""Suites of Meta-World (extra `metaworld`): its tasks, its physics, its scripted policies.

What is ours: initial states with numbers, action chunks, pictures by the project's renderer.
"""
