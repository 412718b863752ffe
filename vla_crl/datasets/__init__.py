"""Demonstrations that others recorded, read from the user's disk."""
