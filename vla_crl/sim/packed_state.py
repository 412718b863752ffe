"""A world's physics as a row of numbers, so that few MjData serve many slots."""

import mujoco

STATE_SPEC = int(
    mujoco.mjtState.mjSTATE_TIME
    | mujoco.mjtState.mjSTATE_QPOS
    | mujoco.mjtState.mjSTATE_QVEL
    | mujoco.mjtState.mjSTATE_ACT
    | mujoco.mjtState.mjSTATE_WARMSTART
    | mujoco.mjtState.mjSTATE_CTRL
    | mujoco.mjtState.mjSTATE_MOCAP_POS
    | mujoco.mjtState.mjSTATE_MOCAP_QUAT
)
"""What the next `mj_step` depends on beside `tree_asleep`: with both a slot can continue in any
MjData, bit for bit."""

JUST_WOKEN, FALLS_ASLEEP_NEXT = -11, -2
"""Values of `tree_asleep`, which MuJoCo counts up in steps of no motion; at -1 a tree sleeps."""
