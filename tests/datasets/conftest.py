"""Small files in the layouts of LIBERO's own script, of OpenVLA's and of LeRobot.

Of episode e the arm sees `seen(e, t)` before it executes `action(e, t)`, whoever records it.
Pictures differ from top to bottom and from left to right, so that none can be turned unnoticed.
"""

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

PIXELS = 64
FIRST = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"
SECOND = "pick_up_the_black_bowl_next_to_the_ramekin_and_place_it_on_the_plate"
FLIPS = {"upright": (1, 1), "raw": (-1, 1), "rotated": (1, -1)}

SECOND_PATHS = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
THIRD_PATHS = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


class Seen(NamedTuple):
    """What is seen and felt at one moment: pictures [2, PIXELS, PIXELS, 3] upright, state [8]."""

    pictures: np.ndarray
    state: np.ndarray


def seen(episode: int, step: int) -> Seen:
    ramp = np.linspace(0, 250, PIXELS).astype(np.uint8)
    pictures = np.empty((2, PIXELS, PIXELS, 3), np.uint8)
    pictures[..., 0] = ramp[:, None]  # grows downwards
    pictures[..., 1] = ramp[None, :] // 2  # grows to the right
    for camera in range(2):
        pictures[camera, ..., 2] = (20 * step + 100 * episode + 10 * camera) % 251
    return Seen(pictures, np.array([episode, step, 0.5, 3.1, 0.01 * step, 0.0, 0.04, -0.04]))


def action(episode: int, step: int) -> np.ndarray:
    gripper = -1.0 if step < 2 else 1.0
    return np.array([0.1 * step, -0.1 * episode, 0.5, 0.0, 0.01, -0.02, gripper])


def joints(step: int) -> np.ndarray:
    return 0.1 * step + np.arange(7.0)


def arrays(episode: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return upright pictures [T, 2, ...], states [T, 8] and actions [T, 7] as they should be."""
    moments = [seen(episode, step) for step in range(length)]
    return (
        np.stack([moment.pictures for moment in moments]),
        np.stack([moment.state for moment in moments]),
        np.stack([action(episode, step) for step in range(length)]),
    )


def turned(pictures: np.ndarray, view: str) -> np.ndarray:
    rows, columns = FLIPS[view]
    return pictures[..., ::rows, ::columns, :]


@pytest.fixture
def steps_of() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the function that tells what the steps of an episode really were."""
    return arrays


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vla_crl" / "datasets"


@pytest.fixture
def write_hdf5(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an HDF5 file of one task.

    "after": as LIBERO's own script does, which observes after a step and tells its conventions.
    "before": as OpenVLA's does, which tells nothing; its first state is from before it waited.
    """
    h5py = pytest.importorskip("h5py", reason="pip install --editable '.[datasets]'")

    def write(
        task: str = FIRST,
        lengths: Sequence[int] = (4, 3),
        *,
        observes: str = "after",
        view: str = "raw",
        convention: str = "opengl",
    ) -> Path:
        path = tmp_path / "libero_spatial" / f"{task}_demo.hdf5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            data = file.create_group("data")
            if observes == "after":
                data.attrs["macros_image_convention"] = convention
                data.attrs["problem_info"] = json.dumps({"language_instruction": "as you like"})
                data.attrs["num_demos"], data.attrs["total"] = len(lengths), sum(lengths)
            for episode, length in enumerate(lengths):
                offset = int(observes == "after")
                moments = [seen(episode, step + offset) for step in range(length)]
                state = np.stack([moment.state for moment in moments])
                pictures = turned(np.stack([moment.pictures for moment in moments]), view)
                demo = data.create_group(f"demo_{episode}")
                demo["actions"] = np.stack([action(episode, step) for step in range(length)])
                demo["states"] = np.zeros((length, 1 + 9 + 8))
                for step in range(length):
                    demo["states"][step, 1:8] = joints(step)
                if observes == "before":
                    demo["states"][0, 1:8] = 9.0
                demo["robot_states"] = np.zeros((length, 9))
                demo["dones"] = demo["rewards"] = np.eye(length, dtype=np.uint8)[-1]
                obs = demo.create_group("obs")
                felt = [joints(step + offset) - 0.004 for step in range(length)]
                obs["joint_states"], obs["ee_states"] = np.stack(felt), state[:, :6]
                obs["ee_pos"], obs["ee_ori"] = state[:, :3], state[:, 3:6]
                obs["gripper_states"] = state[:, 6:]
                obs["agentview_rgb"], obs["eye_in_hand_rgb"] = pictures[:, 0], pictures[:, 1]
        return path

    return write


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that opens an HDF5 file to be changed."""
    h5py = pytest.importorskip("h5py")
    return lambda path: h5py.File(path, "a")


def png(picture: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "frame.png"}


def write_video(path: Path, pictures: Sequence[np.ndarray], fps: int, codec: str) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options={"crf": "5", "g": "2"})
        stream.width = stream.height = PIXELS
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def lerobot_table(episode: int, length: int, names: dict[str, Any], view: str | None) -> Any:
    import pyarrow as pa

    pictures, state, actions = arrays(episode, length)
    columns = {
        names["state"]: pa.array(state.tolist(), pa.list_(pa.float32())),
        names["action"]: pa.array(actions.tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array(np.arange(length) / 10, pa.float32()),
        "frame_index": pa.array(range(length)),
        "episode_index": pa.array([episode] * length),
        "index": pa.array(range(length)),
        "task_index": pa.array([episode % 2] * length),
    }
    for camera, name in enumerate(names["cameras"]) if view else ():
        shown = turned(pictures[:, camera], view or "")
        columns[name] = pa.array([png(picture) for picture in shown])
    return pa.table(columns)


@pytest.fixture
def write_lerobot(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a LeRobot folder; version 3 has two episodes a file."""
    pa = pytest.importorskip("pyarrow", reason="pip install --editable '.[datasets]'")
    from pyarrow import parquet

    def write(
        tasks: Sequence[str] = (FIRST, SECOND, FIRST),
        *,
        version: str = "v2.1",
        codec: str | None = None,
        cameras: tuple[str, str] = ("image", "wrist_image"),
        view: str = "rotated",
        length: int = 4,
    ) -> Path:
        folder = tmp_path / "libero"
        (folder / "meta").mkdir(parents=True)
        prefix = "observation." if cameras[0].startswith("observation.") else ""
        names = {
            "cameras": cameras,
            "state": f"{prefix}state",
            "action": "action" if prefix else "actions",
        }
        sentences = [task.replace("_", " ") for task in tasks]
        lengths = [length + episode for episode in range(len(tasks))]
        is_third = version == "v3.0"
        paths = THIRD_PATHS if is_third else SECOND_PATHS
        kind = {"dtype": "video" if codec else "image", "shape": [PIXELS, PIXELS, 3]}
        features = dict.fromkeys(cameras, kind) | {
            names["state"]: {"dtype": "float32", "shape": [8]},
            names["action"]: {"dtype": "float32", "shape": [7]},
        }
        info = {"codebase_version": version, "fps": 10, "chunks_size": 2, "features": features}
        (folder / "meta" / "info.json").write_text(json.dumps(info | paths))
        rows = [
            {"episode_index": episode, "tasks": [sentence], "length": lengths[episode]}
            for episode, sentence in enumerate(sentences)
        ]
        parts = [
            lerobot_table(e, lengths[e], names, None if codec else view) for e in range(len(tasks))
        ]
        shown = [turned(arrays(e, lengths[e])[0], view) for e in range(len(tasks))]
        if not is_third:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "meta" / "episodes.jsonl").write_text(lines)
        for episode, row in enumerate(rows):
            place = {"chunk_index": 0, "file_index": episode // 2}
            if is_third:
                row |= {f"data/{key}": value for key, value in place.items()}
                row["stats/state/mean"] = [0.0] * 8
            keys = place | {"episode_chunk": episode // 2, "episode_index": episode}
            is_first = not is_third or episode % 2 == 0
            group = range(episode, min(episode + 2, len(tasks))) if is_third else [episode]
            if is_first:
                file = folder / paths["data_path"].format(**keys)
                file.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(pa.concat_tables([parts[e] for e in group]), file)
            for camera, name in enumerate(cameras) if codec else ():
                row |= {f"videos/{name}/{key}": value for key, value in place.items()}
                begin = 0.0 if is_first else lengths[episode - 1] / 10
                row[f"videos/{name}/from_timestamp"] = begin
                row[f"videos/{name}/to_timestamp"] = begin + lengths[episode] / 10
                if is_first:
                    file = folder / paths["video_path"].format(**keys, video_key=name)
                    frames = [picture for e in group for picture in shown[e][:, camera]]
                    write_video(file, frames, 10, codec or "")
        if is_third:
            file = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
            file.parent.mkdir(parents=True)
            parquet.write_table(pa.Table.from_pylist(rows), file)
        return folder

    return write
