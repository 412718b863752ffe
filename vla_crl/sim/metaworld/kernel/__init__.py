"""Compiled code that steps Meta-World's tasks; the only thing that touches many slots at once."""
