"""Worlds x policy -> batches: collection, storage and evaluation of rollouts."""
