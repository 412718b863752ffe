"""Learning tasks one after another: streams, methods, the success matrix and its metrics."""
