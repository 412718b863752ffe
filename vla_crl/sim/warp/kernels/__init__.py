"""Functions that Warp compiles: the counterparts of what numba compiles in `vla_crl.sim`."""
