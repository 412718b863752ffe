"""The command line: parsing, what each command does, how it ends."""
