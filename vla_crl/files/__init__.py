"""Reading and writing files: whole or not at all, of a bearable size, checked."""
