"""Train and benchmark robot policies that keep learning."""

__version__ = "0.1.0"
