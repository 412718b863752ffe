"""The recipe that trains stable-baselines3's PPO."""

import csv
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3", reason="pip install --editable '.[sb3]'")

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from vla_crl.cli.commands import load_recipe
from vla_crl.cli.main import main
from vla_crl.config import from_mapping
from vla_crl.errors import ConfigError
from vla_crl.sb3.baseline import Point
from vla_crl.sb3.recipe import BaselineConfig

SMALL = (
    *("--num-steps", "64", "--num-envs", "4", "--evaluate-every", "32"),
    *("--num-eval-episodes", "2", "--compute.num-torch-threads", "1"),
    *("--ppo.n-steps", "8", "--ppo.batch-size", "16", "--ppo.n-epochs", "1"),
    *("--ppo.net-arch", "8", "8"),
)


def test_a_baseline_leaves_its_curve_and_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, temporary = tmp_path / "drawer", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert main(["baseline", "sb3_ppo", *SMALL, "--output", str(folder)]) == 0
    assert not list(temporary.glob("SB3*"))
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == Point._fields
    # Before training, after every 32 control steps of all environments, and in the end.
    assert [row["num_steps"] for row in rows] == ["0", "32", "64"]
    assert {row["episodes"] for row in rows} == {"2"}
    assert (folder / "curve.png").is_file()
    assert PPO.load(folder / "model.zip").num_timesteps == 64
    normalization = pickle.loads((folder / "normalization.pkl").read_bytes())
    assert isinstance(normalization, VecNormalize)
    assert normalization.norm_obs_keys == ["state", "privileged"]
    made = json.loads((folder / "settings.json").read_text())
    config = from_mapping(BaselineConfig, made["settings"], "settings.json")
    assert config == load_recipe("baseline", "sb3_ppo", SMALL)
    assert made["command"][1:3] == ["baseline", "sb3_ppo"]
    assert "stable_baselines3" in made["packages"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").mkdir()
    assert main(["baseline", "sb3_ppo", *SMALL, "--output", str(tmp_path / "kept")]) == 2
    assert "exists" in capsys.readouterr().err


def test_without_the_extra_the_install_line_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["baseline", "sb3_ppo"]) == 2
    assert "needs stable-baselines3; pip install --editable '.[sb3]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0, expected at least 1"),
        ({"num_envs": -1}, "num_envs = -1, expected at least 1"),
        ({"evaluate_every": 0}, "evaluate_every = 0, expected at least 1"),
        ({"num_eval_episodes": 0}, "num_eval_episodes = 0, expected at least 1"),
        ({"ppo": {"n_steps": 0}}, "n_steps = 0, expected at least 1"),
        ({"ppo": {"learning_rate": 0.0}}, "learning_rate = 0.0, expected more than 0"),
        ({"ppo": {"gamma": 1.5}}, "gamma = 1.5, expected at least 0 and at most 1"),
        ({"ppo": {"batch_size": 1}}, "batch_size = 1, expected at least 2"),
        ({"image_size": 16}, "image_size = 16, expected at least 36"),
        ({"num_envs": 1, "ppo": {"n_steps": 1}}, "an update needs two control steps or more"),
        (
            {"compute": {"sim_device": "cuda:0"}},
            "sim_device = 'cuda:0', but a baseline knows 'cpu'",
        ),
        ({"compute": {"dtype": "bfloat16"}}, "dtype = 'bfloat16', but a baseline knows 'float32'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    recipe = {"suite": "tabletop_goal", "task": "open_drawer", "num_steps": 1} | settings
    with pytest.raises(ConfigError, match=message):
        from_mapping(BaselineConfig, recipe, "recipe.toml")


def test_a_recipe_of_another_command_is_called_one() -> None:
    with pytest.raises(ConfigError, match="is a recipe of 'vla-crl baseline', not of 'vla-crl tra"):
        load_recipe("train", "sb3_ppo", [])
    settings: Any = load_recipe("baseline", "sb3_ppo", [])
    assert (settings.task, settings.reward) == ("open_drawer", "dense")


def test_a_device_that_is_missing_is_told_and_no_other_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    folder = tmp_path / "drawer"
    command = ["baseline", "sb3_ppo", *SMALL, "--output", str(folder)]
    assert main([*command, "--compute.device", "cuda:0"]) == 2
    assert "device 'cuda:0': torch" in capsys.readouterr().err
    assert not folder.exists()
