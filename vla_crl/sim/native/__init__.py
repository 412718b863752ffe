"""The project's own worlds: scenes of MJCF files with an arm, stepped by a compiled kernel."""
