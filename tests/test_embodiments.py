"""Robots of other channels than the arm's, from demonstrations to films; on fake worlds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from vla_crl.cli.main import main
from vla_crl.compute import ComputeConfig
from vla_crl.datasets.config import DatasetConfig
from vla_crl.datasets.reading import read_demonstrations
from vla_crl.errors import ConfigError
from vla_crl.models.checkpoint import build_policy, load_policy, save_policy
from vla_crl.sim import gymnasium_envs
from vla_crl.sim.backends import find_suite
from vla_crl.sim.gymnasium_envs import SuiteVectorEnv, TaskEnv

ROBOTS: dict[str, dict[str, list[str]]] = {
    "four_actions_one_camera": {
        "action": ["delta_x", "delta_y", "delta_z", "gripper"],
        "state": ["x", "y", "z"],
        "cameras": ["top"],
    },
    "gripper_first_three_cameras": {
        "action": ["gripper", "delta_x", "delta_y"],
        "state": ["x", "y", "z", "finger_left"],
        "cameras": ["front", "side", "top"],
    },
}
Write = Callable[..., str]
SMALL_POLICY = """
image_size = {image_size}
vocabulary = ["where", "is", "the", "reach", "red", "green", "blue", "square"]
max_words = 5
action_horizon = 4
execution_horizon = 4
value_width = 16

[backbone]
patch_size = 8
pixel_shuffle = 2
vision_width = 48
num_vision_layers = 1
num_vision_heads = 2
vision_mlp_width = 64
width = 64
num_layers = 2
num_heads = 2
num_kv_heads = 2
mlp_width = 96
initializer_range = 0.06

[head.expert]
width = 48
num_heads = 2
mlp_width = 96
num_action_tokens = 2
"""
PRETRAIN = """
suite = "{suite}"
policy = "small"
num_episodes = 6
num_eval_episodes = 2

[compute]
num_torch_threads = 1

[supervised]
num_updates = 3
num_warmup_updates = 1
batch_size = 8
"""
TRAIN = """
suite = "{suite}"
policy = "{folder}/base"
episodes_per_task = 24
video_episodes = 1

[compute]
num_torch_threads = 1

[ppo]
num_epochs = 1
minibatch_size = 16
value_warmup_iterations = 1

[collector]
num_envs = 8
num_chunks = 3

[evaluation]
num_episodes = 2
num_sampled_episodes = 0
"""


@pytest.fixture(params=ROBOTS)
def suite(request: pytest.FixtureRequest, write_fake_suite: Write) -> str:
    return write_fake_suite(embodiment=ROBOTS[request.param])


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_the_expert_solves_every_task(suite: str, tmp_path: Path):
    rows = tmp_path / "rows.json"
    assert not run(
        "evaluate", "--policy", "expert", "--suite", suite, "--episodes", 4, "--output", rows
    )
    results = json.loads(rows.read_text(encoding="utf-8"))
    assert [result["task"] for result in results] == ["reach_red", "reach_green", "reach_blue"]
    assert [result["successes"] for result in results] == [4, 4, 4]


def test_demonstrations_have_the_robots_channels(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, robot = tmp_path / "demonstrations.npz", find_suite(suite).embodiment
    assert not run("collect", "--suite", suite, "--episodes", 6, "--output", file)
    data = read_demonstrations(file, DatasetConfig(), find_suite(suite), pixels=64)
    assert data.images.shape[1:] == (len(robot.cameras), 64, 64, 3)
    assert data.state.shape[1:] == (len(robot.state),)
    assert data.label.shape[1:] == (len(robot.action),)
    assert (data.label[:, robot.is_binary] == -1.0).all()
    assert data.object_visible.shape[1:] == (len(robot.cameras), 3)
    assert data.named[:, 0].tolist() == data.task.tolist()  # the square that the task reaches


def test_the_expert_is_filmed(suite: str, tmp_path: Path):
    film, sheet = tmp_path / "film.mp4", tmp_path / "sheet.png"
    command = ("rollout", "--policy", "expert", "--suite", suite, "--episodes", 1)
    assert not run(*command, "--output", film)
    assert not run("show", "suite", suite, "--output", sheet)
    assert film.stat().st_size > 1000
    assert sheet.stat().st_size > 1000


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that registers one suite, as importing the module does with all."""
    known = set(gymnasium.registry)

    def register(suite: str) -> None:
        monkeypatch.setattr(gymnasium_envs, "list_suites", lambda: [suite])
        gymnasium_envs.register_envs()

    yield register
    for name in gymnasium.registry.keys() - known:
        del gymnasium.registry[name]


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("size", [24, 128])
def test_gymnasiums_checker_finds_nothing(
    write_fake_suite: Write, register: Callable[[str], None], robot: str, size: int
):
    channels = ROBOTS[robot]
    suite = write_fake_suite(embodiment=channels)
    register(suite)
    env = gymnasium.make(f"vla_crl/{suite}.reach_red-v0", image_size=size, render_mode="rgb_array")
    check_env(env.unwrapped)
    observation, _ = env.reset(seed=0)
    assert observation["images"].shape == (len(channels["cameras"]), size, size, 3)
    assert observation["state"].shape == (len(channels["state"]),)
    assert env.action_space.shape == (len(channels["action"]),)
    frame: Any = env.render()
    assert frame.shape == (256, 256, 3)
    env.close()
    envs = gymnasium.make_vec(f"vla_crl/{suite}-v0", num_envs=4, image_size=size)
    batch, info = envs.reset(seed=0)
    assert batch in envs.observation_space
    assert list(info["task"]) == ["reach_red", "reach_green", "reach_blue", "reach_red"]
    assert envs.step(envs.action_space.sample())[1].shape == (4,)
    envs.close()


def test_an_environment_asks_for_frames_before_the_work(write_fake_suite: Write):
    suite = write_fake_suite(extras=["Grounded"])
    with pytest.raises(
        ConfigError, match="suite 'fake' cannot be rendered: its backend .* lacks f"
    ):
        TaskEnv(suite, "reach_red", render_mode="rgb_array")
    with pytest.raises(
        ConfigError, match="suite 'fake' cannot be rendered: its backend .* lacks f"
    ):
        SuiteVectorEnv(suite, num_envs=2, render_mode="rgb_array")


@pytest.fixture
def write_recipes(tmp_path: Path, write_fake_suite: Write) -> Write:
    """Return a function that writes a small policy for images of a size, and its recipes."""

    def write(image_size: int, **suite: Any) -> str:
        name = write_fake_suite(**suite)
        for file, text in (
            ("policies/small.toml", SMALL_POLICY.format(image_size=image_size)),
            ("experiments/pretrain_small.toml", PRETRAIN.format(suite=name)),
            ("experiments/train_small.toml", TRAIN.format(suite=name, folder=tmp_path)),
        ):
            path = tmp_path / "catalogue" / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return name

    return write


@pytest.mark.parametrize(
    ("robot", "size", "dtype"),
    [
        ("four_actions_one_camera", 96, "float32"),
        ("gripper_first_three_cameras", 128, "bfloat16"),
    ],
)
def test_a_policy_of_any_robot_goes_from_demonstrations_to_films(
    write_recipes: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    robot: str,
    size: int,
    dtype: str,
):
    monkeypatch.chdir(tmp_path)
    suite = write_recipes(size, embodiment=ROBOTS[robot])
    flags = ("--compute.dtype", dtype)
    assert not run("pretrain", "pretrain_small", "--output", "base", *flags)
    assert not run("train", "train_small", "--run-dir", "run", *flags)
    rows = tmp_path / "rows.json"
    after = ("--policy", "run/checkpoints/stage_2", "--suite", suite, "--dtype", dtype)
    assert not run("evaluate", *after, "--episodes", 2, "--output", rows)
    assert len(json.loads(rows.read_text(encoding="utf-8"))) == 3
    assert not run("rollout", *after, "--episodes", 1, "--output", "film.mp4")
    assert (tmp_path / "film.mp4").stat().st_size > 1000
    policy = load_policy("base")
    assert policy.embodiment == find_suite(suite).embodiment
    assert policy.config.image_size == size
    assert policy.config.things == ("red square", "green square", "blue square")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"reach_red", "reach_green"}
    assert len(list((tmp_path / "run" / "videos").glob("*.mp4"))) == 2


@pytest.mark.slow
def test_joint_targets_go_from_demonstrations_to_films(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    suite = "tabletop_object@joint_position"
    Path("pretrain.toml").write_text(
        PRETRAIN.format(suite=suite).replace("small", "tiny"), encoding="utf-8"
    )
    Path("train.toml").write_text(TRAIN.format(suite=suite, folder="."), encoding="utf-8")
    demonstrated = ("--num-episodes", 10, "--num-eval-episodes", 1)
    assert not run("pretrain", "./pretrain.toml", "--output", "base", *demonstrated)
    task = ("--tasks", "red_cube_in_basket")
    few = (*task, "--heldout-tasks", "pink_egg_in_tray", "--episodes-per-task", 8)
    assert not run("train", "./train.toml", "--run-dir", "run", *few)
    after = ("--policy", "run/checkpoints/stage_1", "--suite", suite)
    assert not run("evaluate", *after, *task, "--episodes", 2, "--output", "rows.json")
    assert not run("rollout", *after, *task, "--episodes", 1, "--output", "film.mp4")
    assert Path("film.mp4").stat().st_size > 1000
    robot = load_policy("run/checkpoints/stage_1").embodiment
    assert robot == find_suite(suite).embodiment
    assert robot.action == (*(f"target_joint{number}" for number in range(1, 8)), "gripper")
    lines = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"red_cube_in_basket"}
    assert len(list(Path("run/videos").glob("*.mp4"))) == 2


def test_films_that_cannot_be_made_are_refused_before_the_training(
    write_recipes: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_recipes(64, extras=["Grounded"])
    assert run("train", "train_small", "--run-dir", tmp_path / "run") == 2
    message = "suite 'fake' cannot be filmed, as video_episodes = 1 asks: its backend"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_worlds_that_a_backend_cannot_simulate_there_are_refused(
    write_recipes: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ComputeConfig, "prepare", lambda self: None)  # as if there were a GPU
    write_recipes(64, embodiment=ROBOTS["four_actions_one_camera"])
    save_policy(build_policy("small", embodiment=find_suite("fake").embodiment), Path("base"))
    flags: dict[str, tuple[object, ...]] = {
        "train": ("train_small", "--run-dir", "run", "--compute.sim-device", "cuda:0"),
        "evaluate": ("--policy", "./base", "--suite", "fake", "--sim-device", "cuda:0"),
    }
    assert run(command, *flags[command]) == 2
    message = (
        "sim_device 'cuda:0': the backend 'vla_crl.testing.fake_worlds:BACKEND' of suite 'fake' "
        "simulates on cpu only"
    )
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.slow
def test_a_small_policy_learns_to_reach_from_pixels(
    write_recipes: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_recipes(64, embodiment=ROBOTS["four_actions_one_camera"])
    learn = {"num-updates": 500, "num-warmup-updates": 50, "batch-size": 32, "learning-rate": 3e-3}
    flags = [word for key, value in learn.items() for word in (f"--supervised.{key}", value)]
    flags += ["--num-episodes", 600, "--num-eval-episodes", 16]
    assert not run("pretrain", "pretrain_small", "--output", "base", *flags)
    card = json.loads((tmp_path / "base" / "policy.json").read_text(encoding="utf-8"))["card"]
    assert card["mean_success"] > 0.5, card["success_on_test_ids"]


@pytest.mark.parametrize(
    ("settings", "command", "message"),
    [
        (
            {"extras": ["Grounded", "Resumable"]},
            ("rollout", "--policy", "expert", "--episodes", 1, "--output", "film.mp4"),
            "cannot be filmed: its backend 'vla_crl.testing.fake_worlds:BACKEND' lacks frames",
        ),
        (
            {},
            ("rollout", "--policy", "expert", "--output", "film.mp4", "--renderer", "mujoco"),
            "cannot be filmed by MuJoCo's renderer: its backend",
        ),
        (
            {"extras": ["Filmed"]},
            ("collect", "--episodes", 1, "--output", "demonstrations.npz"),
            "cannot be labelled: its backend 'vla_crl.testing.fake_worlds:BACKEND' lacks camera_po",
        ),
        (
            {"backend": "vla_crl.testing.fake_worlds:WITHOUT_EXPERT"},
            ("collect", "--episodes", 1, "--output", "demonstrations.npz"),
            "its backend 'vla_crl.testing.fake_worlds:WITHOUT_EXPERT' has no scripted expert",
        ),
        (
            {"backend": "vla_crl.testing.fake_worlds:WITHOUT_EXPERT"},
            ("evaluate", "--policy", "expert", "--episodes", 1),
            "has no scripted expert; use a policy, or demonstrations from elsewhere",
        ),
        (
            {},
            ("evaluate", "--policy", "tiny", "--episodes", 1),
            "action[2] of the suite is 'gripper', the policy was trained with 'delta_z'",
        ),
    ],
)
def test_what_a_backend_lacks_is_said_in_a_line(
    write_fake_suite: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    command: tuple[object, ...],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    suite = write_fake_suite(**settings)
    name, *flags = command
    assert run(name, "--suite", suite, *flags) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue"]
