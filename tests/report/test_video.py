"""The videos play anywhere, show what they are told and leave nothing behind on errors."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vla_crl.errors import ConfigError, SpecError
from vla_crl.report.video import GridVideo, read_notes


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def gray(num_tiles: int, value: int = 128) -> np.ndarray:
    return np.full((num_tiles, 32, 32, 3), value, dtype=np.uint8)


def test_the_file_is_what_browsers_play(tmp_path: Path) -> None:
    with GridVideo(tmp_path / "v.mp4", ["a", "b", "c"], num_columns=2, tile_height=33) as video:
        video.write(gray(3))
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.width % 2 == stream.height % 2 == 0
        assert stream.average_rate == 10
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # index in front: plays while it loads


def test_tiles_stand_where_they_belong_in_true_colours(tmp_path: Path) -> None:
    colors = np.array([[200, 40, 40], [40, 160, 60], [40, 80, 200]], dtype=np.uint8)
    frames = np.broadcast_to(colors[:, None, None], (3, 32, 32, 3)).copy()
    with GridVideo(tmp_path / "v.mp4", ["", "", ""], num_columns=2, tile_height=64) as video:
        video.write(frames)
    picture = decode(tmp_path / "v.mp4")[0].astype(int)
    # Margin 10, no title, caption line 17 + status line 17 + 5: tiles begin 39 below the margin
    # and every row is 39 + 64 + 10 high; columns are 74 apart.
    for color, (x, y) in zip(colors, [(10, 49), (84, 49), (10, 162)], strict=True):
        np.testing.assert_allclose(picture[y + 32, x + 32], color, atol=6)


def test_a_tile_stands_still_after_its_outcome_and_gets_a_frame(tmp_path: Path) -> None:
    with GridVideo(tmp_path / "v.mp4", ["one", "two"], tile_height=64) as video:
        video.write(gray(2, 60))
        video.write(gray(2, 120), [True, None])
        video.write(gray(2, 240), [False, None])
    frames = decode(tmp_path / "v.mp4")
    assert len(frames) == 3 + 15  # and 1.5 s at 10 fps to read the outcome
    last = frames[-1].astype(int)
    assert last[49 + 32, 10 + 32].mean() == pytest.approx(120, abs=6)
    assert last[49 + 32, 84 + 32].mean() == pytest.approx(240, abs=6)
    np.testing.assert_allclose(last[49 + 2, 10 + 32], (0, 114, 178), atol=30)  # blue: success
    notes = read_notes(tmp_path / "v.mp4")
    assert notes.captions == ("one: success", "two: running")


def test_the_video_carries_its_title_or_its_name(tmp_path: Path) -> None:
    for name, title in (("stage_1.mp4", "After stage 1: 89 %"), ("stage_2.mp4", "")):
        with GridVideo(tmp_path / name, ["put it in the basket"], title=title) as video:
            video.write(gray(1), [False])
    assert read_notes(tmp_path / "stage_1.mp4").title == "After stage 1: 89 %"
    assert read_notes(tmp_path / "stage_2.mp4").title == "stage 2"
    assert read_notes(tmp_path / "stage_2.mp4").captions == ("put it in the basket: failure",)


def test_an_error_leaves_no_file_and_does_not_touch_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"older")

    def record() -> None:
        with GridVideo(tmp_path / "v.mp4", ["a"]) as video:
            video.write(gray(1))
            raise RuntimeError("simulator died")

    with pytest.raises(RuntimeError, match="simulator died"):
        record()
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert (tmp_path / "v.mp4").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("frames", "outcomes", "message"),
    [
        (gray(2).astype(np.float32), None, r"frames: got float32 \(2, 32, 32, 3\), expected uint8"),
        (gray(3), None, r"frames: got uint8 \(3, 32, 32, 3\), expected uint8 \(2, H, W, 3\)"),
        (gray(2)[:, :16], None, r"got \(2, 16, 32, 3\), but the first were \(2, 32, 32, 3\)"),
        (gray(2), [True], "outcomes: got 1, expected 2"),
    ],
)
def test_frames_that_do_not_fit_are_refused(
    tmp_path: Path, frames: np.ndarray, outcomes: list | None, message: str
) -> None:
    video = GridVideo(tmp_path / "v.mp4", ["a", "b"])
    video.write(gray(2))
    with pytest.raises(SpecError, match=message):
        video.write(frames, outcomes)
    video.close()


def test_videos_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"v\.mp4: got 0 captions, num_columns 5, fps 10"):
        GridVideo(tmp_path / "v.mp4", [])
    with pytest.raises(SpecError, match="needs at least one frame, none was written"):
        GridVideo(tmp_path / "v.mp4", ["a"]).close()
    (tmp_path / "broken.mp4").write_bytes(b"nope")
    with pytest.raises(ConfigError, match=r"broken\.mp4: not a video"):
        read_notes(tmp_path / "broken.mp4")


@pytest.mark.parametrize("name", ["tcp:/x.mp4", "seed:1/v.mp4", "concat:a|b.mp4"])
def test_a_path_is_a_path_though_it_looks_like_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with GridVideo(name, ["a"], title="here") as video:
        video.write(gray(1))
    assert Path(name).stat().st_size > 0
    assert read_notes(name).title == "here"


def test_a_caption_is_one_line_whatever_it_holds(tmp_path: Path) -> None:
    with GridVideo(tmp_path / "v.mp4", ["a\nb\u2028c", "[/red] $x$"]) as video:
        video.write(gray(2))
    assert read_notes(tmp_path / "v.mp4").captions == ("a b c: running", "[/red] $x$: running")


def test_a_webp_is_a_picture_that_moves_for_ever(tmp_path: Path):
    with GridVideo(tmp_path / "v.webp", ["a", "b"], tile_height=64) as video:
        for step in range(5):
            video.write(np.full((2, 64, 64, 3), 50 * step, np.uint8), [None, True])
    with Image.open(tmp_path / "v.webp") as picture:
        assert getattr(picture, "n_frames", 1) == 5  # the last one, which stays, is there once
        assert picture.info["loop"] == 0


def test_other_formats_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"v\.gif: expected a file that ends in \.mp4 or \.webp"):
        GridVideo(tmp_path / "v.gif", ["a"])
