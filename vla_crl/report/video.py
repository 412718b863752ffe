"""Videos of several robots side by side, with what each was told and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from vla_crl.errors import ConfigError, SpecError
from vla_crl.files.reading import require_file
from vla_crl.files.writing import media_url, put_in_place, temporary_path

PAPER, INK, MUTED = (255, 255, 255), (27, 39, 51), (92, 107, 122)
OUTCOMES: dict[bool | None, tuple[str, tuple[int, int, int]]] = {
    None: ("running", MUTED),
    True: ("success", (0, 114, 178)),
    False: ("failure", (213, 94, 0)),
}
"""Word and colour of each outcome; blue and vermilion differ with any colour vision."""
HOLD_S = 1.5
"""How long the last frame stays, so that the outcomes can be read."""
MARGIN = 10
"""Pixels between tiles."""


class _Format(NamedTuple):
    """How a file of some suffix is written: names and options of FFmpeg."""

    container: str
    container_options: dict[str, str]
    codec: str
    codec_options: dict[str, str]


_FORMATS = {
    # faststart puts the index in front: playback begins before the whole file is there.
    ".mp4": _Format("mp4", {"movflags": "+faststart"}, "libx264", {"crf": "20"}),
    # 0 repeats it forever: pages that hold no video show it as a picture.
    ".webp": _Format("webp", {"loop": "0"}, "libwebp_anim", {"quality": "60"}),
}
FORMATS = tuple(_FORMATS)
"""Suffixes of what can be written."""


@dataclass(frozen=True)
class VideoNotes:
    """What a video says about itself.

    Attributes:
        title: What it shows; the words of the file name where it says nothing.
        captions: One line a tile: the instruction and how the episode ended.
    """

    title: str
    captions: tuple[str, ...]


def read_notes(path: str | Path) -> VideoNotes:
    """Read title and captions from the metadata of an mp4."""
    path = Path(path)
    require_file(path)
    try:
        with av.open(media_url(path)) as container:
            metadata = container.metadata
    except FFmpegError as error:
        raise ConfigError(f"{path}: not a video ({error.strerror}); remove it") from error
    title = metadata.get("title") or path.stem.replace("_", " ")
    comment = metadata.get("comment", "")
    return VideoNotes(title, tuple(comment.split("\n") if comment else ()))


class GridVideo:
    """Writes one video in which N episodes run beside each other.

    Every tile shows one episode and above it the instruction, the control step and the outcome.
    When its outcome arrives a tile stands still. An mp4 plays in every browser (H.264, yuv420p,
    index in front) and carries title and captions as metadata, see `read_notes`; a webp is a
    picture that moves, for pages that take no video. It is written when the video is closed; after
    an error nothing is left.

    Example:
        with GridVideo("rollout.mp4", instructions, num_columns=5) as video:
            while running:
                video.write(frames, outcomes)  # [N, H, W, 3] uint8, N of None, True or False
    """

    def __init__(
        self,
        path: str | Path,
        captions: Sequence[str],
        *,
        title: str = "",
        num_columns: int = 5,
        fps: int = 10,
        tile_height: int = 192,
    ) -> None:
        """Prepare the video.

        Args:
            path: Where the mp4 or webp goes; its folder is made, an existing file is replaced.
            captions: One instruction a tile.
            title: Line above the tiles.
            num_columns: Tiles in a row.
            fps: Frames a second; the control frequency in Hz gives real time.
            tile_height: Pixels to which the height of a frame is scaled, its aspect kept.
        """
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise ConfigError(f"{path}: expected a file that ends in {' or '.join(FORMATS)}")
        if not captions or num_columns < 1 or fps < 1 or tile_height < 32:
            raise ConfigError(
                f"{path}: got {len(captions)} captions, num_columns {num_columns}, fps {fps}, "
                f"tile_height {tile_height}; expected at least 1, 1, 1 and 32"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._captions = tuple(" ".join(caption.split()) for caption in captions)
        self._title, self._fps = title, fps
        self._num_columns, self._tile_height = num_columns, tile_height
        self._outcomes: list[bool | None] = [None] * len(captions)
        self._num_frames = 0
        self._shape: tuple[int, ...] = ()
        self._canvas: _GridCanvas | None = None
        self._encoder: _Encoder | None = None

    def __enter__(self) -> "GridVideo":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def write(self, frames: np.ndarray, outcomes: Sequence[bool | None] | None = None) -> None:
        """Add the next moment of all episodes.

        Args:
            frames: [N, H, W, 3] uint8; the first one shows control step 0.
            outcomes: For each tile whether its episode ended with this frame, in success (True) or
                failure (False). What comes for a tile after its end is ignored.

        Raises:
            SpecError: Wrong dtype or shape, or a shape other than that of the first frames.
        """
        num = len(self._captions)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[::3] != (num, 3):
            raise SpecError(
                f"frames: got {frames.dtype} {frames.shape}, expected uint8 ({num}, H, W, 3): "
                "one image a caption"
            )
        if self._shape not in {(), frames.shape}:
            raise SpecError(f"frames: got {frames.shape}, but the first were {self._shape}")
        if outcomes is not None and len(outcomes) != num:
            raise SpecError(f"outcomes: got {len(outcomes)}, expected {num}, one a caption")
        if self._canvas is None or self._encoder is None:
            self._shape = frames.shape
            width = round(self._tile_height * frames.shape[2] / frames.shape[1])
            self._canvas = _GridCanvas(
                self._captions, self._title, self._num_columns, (width, self._tile_height)
            )
            self._encoder = _Encoder(self.path, self._canvas.image.size, self._fps)
        for tile in range(num):
            if self._outcomes[tile] is None:
                self._outcomes[tile] = None if outcomes is None else outcomes[tile]
                self._canvas.draw(tile, frames[tile], self._num_frames, self._outcomes[tile])
        self._encoder.write(self._canvas.image)
        self._num_frames += 1

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            SpecError: No frame was written.
        """
        if self._canvas is None or self._encoder is None:
            raise SpecError(f"{self.path}: a video needs at least one frame, none was written")
        for _ in range(round(HOLD_S * self._fps)):
            self._encoder.write(self._canvas.image)
        endings = [OUTCOMES[outcome][0] for outcome in self._outcomes]
        lines = [f"{text}: {end}" for text, end in zip(self._captions, endings, strict=True)]
        self._encoder.finish(self._title, "\n".join(lines))


class _GridCanvas:
    """The whole picture: a title and rows of tiles, each an image with a caption bar above it.

    The bar is above because players lay their controls over the lower edge.
    """

    def __init__(
        self, captions: tuple[str, ...], title: str, num_columns: int, tile_size: tuple[int, int]
    ) -> None:
        self._tile_width, self._tile_height = tile_size
        self._num_columns = min(num_columns, len(captions))
        width = MARGIN + self._num_columns * (self._tile_width + MARGIN)
        # Pages show the video at about 1,000 pixels: text in a wider one grows with its width.
        size = max(12, round(12 * width / 1000))
        self._plain = _font("DejaVuSans.ttf", size)
        self._bold = _font("DejaVuSans-Bold.ttf", size)
        heading = _font("DejaVuSans-Bold.ttf", round(1.25 * size))
        self._line = round(1.4 * size)
        wrapped = [self._wrap(caption) for caption in captions]
        self._status_y = self._line * max(len(lines) for lines in wrapped)
        self._picture_y = self._status_y + self._line + 5
        self._cell_height = self._picture_y + self._tile_height + MARGIN
        self._top = MARGIN + (round(2.5 * size) if title else 0)
        width = max(width, round(heading.getlength(title)) + 2 * MARGIN)
        height = self._top + -(-len(captions) // self._num_columns) * self._cell_height
        # yuv420p stores colour for 2 x 2 pixels, so both sides must be even.
        self.image = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
        self._pen = ImageDraw.Draw(self.image)
        self._pen.text((MARGIN, MARGIN), title, INK, heading)
        for tile, lines in enumerate(wrapped):
            x, y = self._corner(tile)
            for number, line in enumerate(lines):
                self._pen.text((x, y + self._line * number), line, INK, self._plain)

    def draw(self, tile: int, frame: np.ndarray, step: int, outcome: bool | None) -> None:
        """Replace a tile's image and status line."""
        x, y = self._corner(tile)
        picture = Image.fromarray(frame).resize(
            (self._tile_width, self._tile_height), Image.Resampling.BICUBIC
        )
        top = y + self._picture_y
        self.image.paste(picture, (x, top))
        word, color = OUTCOMES[outcome]
        right, status_y = x + self._tile_width, y + self._status_y
        self._pen.rectangle((x, status_y - 1, right, status_y + self._line), PAPER)
        if outcome is not None:
            self._pen.rectangle(
                (x, top, right - 1, top + self._tile_height - 1), outline=color, width=4
            )
        self._pen.text((x, status_y), f"step {step}", MUTED, self._plain)
        self._pen.text((right, status_y), word, color, self._bold, anchor="ra")

    def _corner(self, tile: int) -> tuple[int, int]:
        row, column = divmod(tile, self._num_columns)
        return MARGIN + column * (self._tile_width + MARGIN), self._top + row * self._cell_height

    def _wrap(self, caption: str) -> list[str]:
        lines = [""]
        for word in caption.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self._plain.getlength(longer) > self._tile_width:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


class _Encoder:
    """Compresses pictures at once and writes the file at the end, in one step."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        self._path, self._partial = path, temporary_path(path)
        name, options, codec, codec_options = _FORMATS[path.suffix]
        self._container = av.open(media_url(self._partial), "w", format=name, options=options)
        self._stream: Any = self._container.add_stream(codec, rate=fps, options=codec_options)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._packets: list[av.Packet] = []

    def write(self, image: Image.Image) -> None:
        self._packets += self._stream.encode(av.VideoFrame.from_image(image))

    def finish(self, title: str, comment: str) -> None:
        self._packets += self._stream.encode(None)
        # The first packet writes the header, metadata included, and the outcomes are known only
        # now: so the packets, which are compressed and small, have waited.
        self._container.metadata.update({"title": title, "comment": comment})
        try:
            for packet in self._packets:
                self._container.mux(packet)
            self._container.close()
            put_in_place(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)
