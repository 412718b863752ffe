"""A base policy from demonstrations: recipe, batches, training, card."""
