"""Learning rules: flow sampling and its log-probabilities, advantages, PPO, supervised."""
