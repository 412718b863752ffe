"""stable-baselines3 in our worlds: a VecEnv, its PPO as a baseline, its policies in evaluations."""
