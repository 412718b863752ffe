"""All tasks at once: what a method that sees them in a row is measured against."""

from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.stream import TaskStream


class Multitask(ContinualMethod):
    """Train all tasks at once, with the episodes of all (multitask oracle)."""

    paper = "arXiv 2603.11653, section 4"
    stores = "nothing; all tasks are there all the time"

    def stream(self, stream: TaskStream) -> TaskStream:
        """Join the tasks into one stage."""
        return stream.joined()
