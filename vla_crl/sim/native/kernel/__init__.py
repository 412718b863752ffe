"""What numba compiles: control, physics, predicates and poses of a block of slots."""
