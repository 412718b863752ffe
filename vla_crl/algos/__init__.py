"""Learning rules: policy gradients, cloning, distillation, supervised; advantages, ratios."""
