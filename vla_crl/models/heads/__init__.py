"""Action heads: how a policy turns a context into a chunk of actions."""
