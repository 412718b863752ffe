"""The brain: VLM backbone, flow action expert, token heads, adapters, checkpoints."""
