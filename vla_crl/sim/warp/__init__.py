"""The suites on a GPU: MuJoCo Warp for physics and pictures, Warp kernels for everything between.

Needs the extra `warp`. Without a GPU everything also runs on Warp's CPU device, slowly.
"""

import importlib.util

from vla_crl.errors import ConfigError, install_extra

for _package in ("warp", "mujoco_warp"):
    if importlib.util.find_spec(_package) is None:
        raise ConfigError(
            f"vla_crl.sim.warp: the package {_package} is missing: {install_extra('warp')}, "
            "or simulate with vla_crl.sim.native.vector_sim.VectorSim"
        )
