"""LIBERO's published convention of the hand's rotation, which policies were trained on."""

import numpy as np


def published_axis_angle(quat_wxyz: np.ndarray) -> np.ndarray:
    """Turn quaternions into rotation vectors as the published evaluations do.

    The angle is 2 acos(w), in [0, 2 pi]: as long as MuJoCo's quaternion changes smoothly so does
    the vector, also where the shortest rotation would jump to the other side, which is near the
    pose in which a hand points down.

    Args:
        quat_wxyz: [B, 4], of MuJoCo.

    Returns:
        [B, 3] rad.
    """
    w = np.clip(quat_wxyz[:, :1], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    is_turned = sine > 0.0
    axis = np.divide(quat_wxyz[:, 1:], sine, out=np.zeros_like(quat_wxyz[:, 1:]), where=is_turned)
    return axis * (2.0 * np.arccos(w))
