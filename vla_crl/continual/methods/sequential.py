"""Sequential fine-tuning."""

from vla_crl.continual.method import ContinualMethod


class SequentialFineTuning(ContinualMethod):
    """Train on one task after another and protect nothing: the baseline."""
