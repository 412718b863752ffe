"""The looks that MuJoCo's own renderer has had, by the version that has them.

Up to 3.3.2 the bytes of every texture are brightnesses. From 3.3.3 on a texture whose file says
that it is sRGB (a PNG with the chunk of that name) is decoded, so its middle tones are drawn
darker; the picture is not encoded again. Of LIBERO that concerns the floor of three suites, which
policies trained before saw light.
"""

from typing import Literal, get_args

import numpy as np

from vla_crl.errors import unknown_name

LookName = Literal["mujoco_3_8", "mujoco_3_2"]
DEFAULT_LOOK: LookName = "mujoco_3_8"


def reads_srgb(where: str, look: str) -> bool:
    """Return whether textures marked as sRGB are decoded.

    Args:
        where: The renderer, for the error message.
        look: A LookName.

    Raises:
        ConfigError: There is no such look.
    """
    if look not in get_args(LookName):
        raise unknown_name(where, "look", look, get_args(LookName))
    return look != "mujoco_3_2"


def linear_of_srgb() -> np.ndarray:
    """Return [256] the brightness in 0 to 255 of each sRGB byte (IEC 61966-2-1)."""
    encoded = np.arange(256) / 255.0
    low, high = encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4
    return np.rint(255.0 * np.where(encoded <= 0.04045, low, high)).astype(np.uint8)
