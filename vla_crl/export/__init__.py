"""A policy for others: in a folder of its own, as programs of torch, with a card."""
