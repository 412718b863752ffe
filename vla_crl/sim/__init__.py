"""The worlds: suites, scenes, controllers, vectorised stepping, rendering, scripted experts."""
