"""Writers that show a training elsewhere, beside its run directory."""
