import ast
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import vla_crl

HEAVY = {
    "torch",
    "mujoco",
    "transformers",
    "peft",
    "numba",
    "gymnasium",
    "matplotlib",
    "tyro",
    "av",
}
LIGHT_MODULES = (
    "vla_crl",
    "vla_crl.errors",
    "vla_crl.config",
    "vla_crl.catalog",
    "vla_crl.cli.main",
    "vla_crl.cli.doctor",
    "vla_crl.runs.directory",
    "vla_crl.bench.record",
)
OPTIONAL = {"sim/warp": "mujoco_warp", "sb3": "stable_baselines3"}
"""Folders whose modules need a package of an extra."""
MODULES = sorted(
    ".".join(path.relative_to(Path(vla_crl.__file__).parent.parent).with_suffix("").parts)
    for path in Path(vla_crl.__file__).parent.rglob("*.py")
    if path.name != "__init__.py"
    and all(
        find_spec(package) or not path.is_relative_to(Path(vla_crl.__file__).parent / folder)
        for folder, package in OPTIONAL.items()
    )
)


def loaded_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_light_module_loads_no_heavy_package(module: str) -> None:
    assert loaded_after(f"import {module}") & HEAVY == set()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("sim", {"torch", "transformers", "vla_crl.models", "vla_crl.algos", "vla_crl.rollout"}),
        ("files", {"vla_crl.runs", "vla_crl.sim", "vla_crl.models", "vla_crl.cli.main"}),
        ("runs", {"torch", "vla_crl.sim", "vla_crl.models", "vla_crl.report", "vla_crl.cli.main"}),
        ("pretraining", {"vla_crl.continual", "vla_crl.report", "vla_crl.cli.main"}),
        ("models", {"vla_crl.sim", "vla_crl.rollout", "vla_crl.continual", "vla_crl.report"}),
        ("algos", {"vla_crl.sim", "vla_crl.rollout", "vla_crl.models", "vla_crl.continual"}),
        (
            "datasets",
            {
                "vla_crl.models",
                "vla_crl.algos",
                "vla_crl.continual",
                "vla_crl.pretraining.pretrain",
            },
        ),
        (
            "rollout",
            {"vla_crl.continual", "vla_crl.report", "vla_crl.cli.main", "stable_baselines3"},
        ),
        pytest.param(
            "sb3",
            {"vla_crl.continual", "vla_crl.report", "vla_crl.cli.main"},
            marks=pytest.mark.skipif(
                not find_spec("stable_baselines3"), reason="pip install --editable '.[sb3]'"
            ),
        ),
    ],
)
def test_dependencies_point_downwards(package: str, forbidden: set[str]) -> None:
    modules = [module for module in MODULES if module.startswith(f"vla_crl.{package}.")]
    assert modules
    assert loaded_after(f"import {', '.join(modules)}") & forbidden == set()


def imported_by(module: str) -> set[str]:
    """Return the modules of the package that a module's own text imports."""
    path = Path(vla_crl.__file__).parent.parent.joinpath(*module.split(".")).with_suffix(".py")
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name for name in names if name.startswith("vla_crl.")}


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("sim", r"sim\.\w+|sim\.renderer"),
        ("sim.renderer", r"sim\.\w+|sim\.renderer\.\w+"),
        ("sim.native.kernel", r"sim\.\w+|sim\.native\.kernel\.\w+"),
        ("sim.native", r"sim\.\w+|sim\.renderer|sim\.native\.\w+(\.\w+)?"),
        ("sim.native.experts", r"sim\.\w+|sim\.native\.\w+(\.\w+)?"),
        ("sim.metaworld", r"sim\.\w+|sim\.renderer|sim\.metaworld\.\w+(\.\w+)?"),
        ("sim.foreign", r"sim\.\w+|sim\.foreign\.\w+"),
        ("sim.libero", r"sim\.\w+|sim\.(renderer|foreign)(\.\w+)?|sim\.libero\.\w+(\.\w+)?"),
    ],
)
def test_rooms_of_the_simulation_know_no_room_above_them(room: str, allowed: str) -> None:
    own = [m for m in MODULES if m.rpartition(".")[0] == f"vla_crl.{room}"]
    assert own
    common = r"contracts|errors|config|files\.\w+|catalog|hardware|progress"
    for module in own:
        for name in imported_by(module):
            known = name.removeprefix("vla_crl.")
            assert re.fullmatch(f"{common}|{allowed}", known), f"{module} imports {name}"
            assert "native.experts" not in name or room == "sim.native.experts"
