"""Textures as pyramids of ever smaller copies, and how a texel is looked up in them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.compilation import HALF, ONE, TINY, ZERO, inlined
from vla_crl.sim.renderer.looks import LookName, linear_of_srgb, reads_srgb
from vla_crl.sim.renderer.shelf import Column, Content, Shelf, Shelves, content_key

MAX_COPIES = 16
"""Of one texture in its pyramid: enough for 32768 x 32768 texels."""

CUBE_FACES = 6

TEXELS_PER_PIXEL = 8
"""Of the finest copy that is kept, along a side."""

SKY_TABLE_SIZE = 512

TO_SHARE = np.float32(1.0 / 255.0)
PER_OCTAVE = np.float32(2.0**-23)
"""Of the bits of a float32."""


class TextureArrays(NamedTuple):
    """K textures, each a pyramid of copies; a cube has one per face, a flat one only the first.

    Faces come in the order right, left, up, down, front, back. The texels belong to all scenes of
    the process.
    """

    texels: NDArray[np.uint32]  # [T] of all copies of all textures, row by row; red lowest
    copies: NDArray[np.int64]  # [K, CUBE_FACES, MAX_COPIES, 3] first texel, height, width
    num_copies: NDArray[np.int64]  # [K]


_SHELVES = Shelves(Column(np.uint32, (), 256_000_000))


def pixels_of(model: mujoco.MjModel, texture: int, look: LookName) -> NDArray[np.uint8]:
    """Return a texture [H, W, 3] as brightnesses; H = 6 W if a cube has six different faces."""
    pixels = _bytes_of(model, texture)
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, axis=-1)
    return linear_of_srgb()[pixels] if _is_decoded(model, texture, look) else pixels


def _bytes_of(model: mujoco.MjModel, texture: int) -> NDArray[np.uint8]:
    shape = tuple(
        int(field[texture]) for field in (model.tex_height, model.tex_width, model.tex_nchannel)
    )
    start = int(model.tex_adr[texture])
    return np.asarray(model.tex_data[start : start + int(np.prod(shape))]).reshape(shape)


def _is_decoded(model: mujoco.MjModel, texture: int, look: LookName) -> bool:
    is_srgb = model.tex_colorspace[texture] == mujoco.mjtColorSpace.mjCOLORSPACE_SRGB
    return bool(is_srgb) and reads_srgb("BatchRenderer", look)


def texture_arrays(
    model: mujoco.MjModel, textures: Sequence[int], look: LookName, most_pixels: int
) -> tuple[TextureArrays, Shelf]:
    """Build the pyramids of some textures of a model.

    Args:
        model: Not kept.
        textures: Indices into mjModel's textures.
        look: Whose pictures are drawn.
        most_pixels: Greater side of the images. Copies of more than TEXELS_PER_PIXEL times as many
            texels a side are left out: they would be looked up only where a texture is magnified
            so much that less than an eighth of it fills the picture.

    Returns:
        The textures, and the shelf on which they lie as long as somebody holds it.
    """
    most_texels = TEXELS_PER_PIXEL * most_pixels
    keys, wanted = [], {}
    for texture in textures:
        is_flat = model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_2D
        is_decoded = _is_decoded(model, texture, look)
        key = content_key(bool(is_flat), is_decoded, most_texels, _bytes_of(model, texture))
        keys.append(key)
        wanted[key] = partial(_content, model, texture, look, most_texels)
    shelf = _SHELVES.shelve(wanted)
    copies = np.zeros((len(textures), CUBE_FACES, MAX_COPIES, 3), np.int64)
    num_copies = np.zeros(len(textures), np.int64)
    for index, key in enumerate(keys):
        place = shelf.place(key)
        own: NDArray[np.int64] = place.note
        copies[index, : own.shape[0], : own.shape[1]] = own + np.array([place.first[0], 0, 0])
        num_copies[index] = own.shape[1]
    return TextureArrays(shelf.arrays[0], copies, num_copies), shelf


def _content(model: mujoco.MjModel, texture: int, look: LookName, most_texels: int) -> Content:
    """Return the texels of a pyramid, and [faces, copies, 3] first texel, height and width."""
    pixels = pixels_of(model, texture, look)
    faces = [pixels]
    if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
        squares = pixels.reshape(-1, pixels.shape[1], pixels.shape[1], 3)
        faces = [squares[face % len(squares)] for face in range(CUBE_FACES)]
    texels, table = [], []
    first = 0
    for picture in faces:
        rows = []
        for copy in _pyramid(picture, most_texels):
            rows.append((first, *copy.shape[:2]))
            texels.append(_packed(copy.reshape(-1, 3)))
            first += len(texels[-1])
        table.append(rows)
    return Content((np.concatenate(texels),), np.array(table, np.int64))


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Put each colour into one number, which is looked up faster than three."""
    wide = colours.astype(np.uint32)
    return np.asarray(wide[:, 0] | wide[:, 1] << 8 | wide[:, 2] << 16, np.uint32)


def _pyramid(picture: NDArray[np.uint8], most_texels: int) -> list[NDArray[np.uint8]]:
    """Halve a picture down to one texel, each the mean of 2 x 2; an odd last line counts twice."""
    copies = [np.ascontiguousarray(picture)]
    while max(picture.shape[:2]) > 1:
        odd_rows, odd_columns = picture.shape[0] % 2, picture.shape[1] % 2
        even = picture
        if odd_rows or odd_columns:
            even = np.pad(picture, ((0, odd_rows), (0, odd_columns), (0, 0)), "edge")
        rows = even[0::2].astype(np.uint16)
        rows += even[1::2]
        rows = rows[:, 0::2] + rows[:, 1::2]
        rows += 2
        rows //= 4
        picture = rows.astype(np.uint8)
        copies.append(picture)
    kept = [copy for copy in copies if max(copy.shape[:2]) <= most_texels]
    return kept or copies[-1:]


@inlined
def look_up(textures, texture, face, s, t, footprint, wraps):
    """Return red, green, blue in [0, 1] at texture coordinates (s, t), t downwards.

    Linear between texels, and between the two copies whose texels are nearest to a pixel's size.

    Args:
        textures: A TextureArrays.
        texture: Index of one.
        face: Of a cube; else 0.
        s: 0 to 1 is the width.
        t: 0 to 1 is the height.
        footprint: Squared size of a pixel in texels of the first copy.
        wraps: Whether the picture repeats; else its border continues.
    """
    last = np.float32(textures.num_copies[texture] - 1)
    level = min(max(HALF * _log2(footprint), ZERO), last)
    fine = np.int32(level)
    part = level - np.float32(fine)
    s = s - np.float32(_floor(s)) if wraps else min(max(s, ZERO), ONE)
    t = t - np.float32(_floor(t)) if wraps else min(max(t, ZERO), ONE)
    copies = textures.copies[texture, face]
    red, green, blue = _between_texels(textures.texels, copies[np.uint32(fine)], s, t, wraps)
    if part > ZERO:
        r, g, b = _between_texels(textures.texels, copies[np.uint32(fine + 1)], s, t, wraps)
        red, green, blue = (
            red + part * (r - red),
            green + part * (g - green),
            blue + part * (b - blue),
        )
    return red * TO_SHARE, green * TO_SHARE, blue * TO_SHARE


@inlined
def _log2(x):
    """Return log2 as if it were a straight line between powers of two: at most 0.09 too small."""
    bits = np.float32(max(x, TINY)).view(np.int32)
    return np.float32(bits) * PER_OCTAVE - np.float32(127.0)


@inlined
def _between_texels(texels, copy, s, t, wraps):
    """Return red, green, blue in 0 to 255, linear between four texels."""
    start, height, width = copy[0], copy[1], copy[2]
    x0, x1, dx = _neighbours(s, width, wraps)
    y0, y1, dy = _neighbours(t, height, wraps)
    top, bottom = start + width * y0, start + width * y1
    a, b = texels[np.uint64(top + x0)], texels[np.uint64(top + x1)]
    c, d = texels[np.uint64(bottom + x0)], texels[np.uint64(bottom + x1)]
    wa, wb = (ONE - dx) * (ONE - dy), dx * (ONE - dy)
    wc, wd = (ONE - dx) * dy, dx * dy
    return (
        wa * _channel(a, 0) + wb * _channel(b, 0) + wc * _channel(c, 0) + wd * _channel(d, 0),
        wa * _channel(a, 8) + wb * _channel(b, 8) + wc * _channel(c, 8) + wd * _channel(d, 8),
        wa * _channel(a, 16) + wb * _channel(b, 16) + wc * _channel(c, 16) + wd * _channel(d, 16),
    )


@inlined
def _channel(texel, shift):
    return np.float32(np.int32((texel >> np.uint32(shift)) & np.uint32(255)))


@inlined
def _neighbours(place, count, wraps):
    """Return the texels before and after a place in [0, 1] and how near the latter is."""
    along = place * np.float32(count) - HALF
    before = _floor(along)
    after = before + np.int32(1)
    beyond_first, beyond_last = (count - 1, 0) if wraps else (0, count - 1)
    first = before if before >= 0 else beyond_first
    last = after if after < count else beyond_last
    return first, last, along - np.float32(before)


@inlined
def _floor(x):
    """Round down; math.floor would be a call, for which all registers are saved."""
    towards_zero = np.int32(x)
    return np.int32(towards_zero - (np.float32(towards_zero) > x))


@inlined
def cube_coordinates(x, y, z):
    """Return which face of a cube the direction (x, y, z) meets and where: face, s, t, |axis|."""
    ax, ay, az = abs(x), abs(y), abs(z)
    if ax >= ay and ax >= az:
        face, s, t, axis = (0, -z, -y, ax) if x > ZERO else (1, z, -y, ax)
    elif ay >= az:
        face, s, t, axis = (2, x, z, ay) if y > ZERO else (3, x, -z, ay)
    else:
        face, s, t, axis = (4, x, -y, az) if z > ZERO else (5, -x, -y, az)
    axis = max(axis, TINY)
    return face, HALF + HALF * s / axis, HALF + HALF * t / axis, axis


def sky_table(model: mujoco.MjModel, look: LookName) -> NDArray[np.uint8]:
    """Sample the first skybox over the elevation; it is drawn as the same all around.

    Returns:
        [SKY_TABLE_SIZE, 3] over sin(elevation) from -1 to 1; black without a skybox.
    """
    table = np.zeros((SKY_TABLE_SIZE, 3), np.uint8)
    skyboxes = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    if not skyboxes.size:
        return table
    pixels = pixels_of(model, int(skyboxes[0]), look)
    size = pixels.shape[1]
    faces = pixels.reshape(-1, size, size, 3)  # one for all, or six
    right, up, down = faces[0], faces[2 % len(faces)], faces[3 % len(faces)]
    for index, sine in enumerate(np.linspace(-1.0, 1.0, SKY_TABLE_SIZE)):
        cosine = np.sqrt(max(0.0, 1.0 - sine * sine))
        if abs(sine) <= cosine:  # the side of the cube: row from the top
            face, along = right[:, size // 2], 0.5 - 0.5 * sine / max(cosine, 1e-9)
        else:  # its top or bottom: from the middle of the face outwards
            face, along = (up if sine > 0 else down)[size // 2], 0.5 + 0.5 * cosine / abs(sine)
        table[index] = face[min(size - 1, int(along * size))]
    return table
