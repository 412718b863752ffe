"""The folder of a run, the files in it, and those of evaluations."""
