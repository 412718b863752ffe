"""Continual-learning methods, one a file; `vla_crl.continual.method` says what they can do."""
