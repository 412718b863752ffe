"""Compiled code that steps LIBERO's worlds: robosuite's arm controller, MuJoCo, the goals."""
