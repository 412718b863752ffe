"""How alike two pictures are."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

WINDOW = {"sigma": 1.5, "truncate": 3.5}
"""11 x 11 pixels."""
WINDOW_RADIUS = 5
C1, C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue: ITU-R BT.601."""


def structural_similarity(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the SSIM of two pictures: 1 if they are the same, about 0 if unrelated.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE TIP 13(4), 2004, equations 13 to 17: mean over all windows that lie
    wholly inside the pictures, with a Gaussian window of 11 x 11 pixels, of the luminances.

    Args:
        a: [H, W, 3], at least 11 pixels each way.
        b: [H, W, 3].
    """
    if a.shape != b.shape or min(a.shape[:2]) <= 2 * WINDOW_RADIUS:
        raise ValueError(
            f"structural_similarity: pictures of {list(a.shape)} and {list(b.shape)}; expected "
            "the same shape, at least 11 x 11"
        )
    x, y = a @ np.array(LUMA), b @ np.array(LUMA)
    mean_x, mean_y = gaussian_filter(x, **WINDOW), gaussian_filter(y, **WINDOW)
    var_x = gaussian_filter(x * x, **WINDOW) - mean_x**2
    var_y = gaussian_filter(y * y, **WINDOW) - mean_y**2
    covariance = gaussian_filter(x * y, **WINDOW) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    inside = slice(WINDOW_RADIUS, -WINDOW_RADIUS)
    return float((luminance * structure)[inside, inside].mean())
