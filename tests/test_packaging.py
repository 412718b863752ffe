"""The checkout, the wheel and the documents say the same."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
DEFINITIONS = ("envs", "policies", "experiments")
NOT_OURS = {".git", ".venv", "runs", "dist"}


def files_of(folder: str) -> set[str]:
    paths = (path for path in (CHECKOUT / folder).rglob("*") if path.is_file())
    names = (path.relative_to(CHECKOUT).as_posix() for path in paths)
    return {name for name in names if "__pycache__" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_code_and_the_definitions_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    definitions = {f"vla_crl/_catalog/{name}" for kind in DEFINITIONS for name in files_of(kind)}
    assert names == files_of("vla_crl") | definitions


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        "from vla_crl import catalog\nfrom vla_crl.cli import main as cli\n"
        "print(catalog.catalog_dir('envs'))\n"
        "cli.main(['list', 'suites'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(target / "vla_crl/_catalog/envs"))
    for path in (CHECKOUT / "envs").glob("*/suite.toml"):
        assert path.parent.name in done.stdout


def test_nobody_is_told_to_install_an_extra_from_pypi() -> None:
    for folder in ("vla_crl", *DEFINITIONS):
        for name in files_of(folder):
            if name.endswith((".py", ".md", ".toml")):
                assert "install 'vla-crl[" not in (CHECKOUT / name).read_text(encoding="utf-8"), (
                    name
                )
    assert "install 'vla-crl[" not in (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_the_readme_maps_every_root_folder() -> None:
    readme = (CHECKOUT / "README.md").read_text()
    mapped = set(re.findall(r"^\| \[`(\w+)/`\]", readme, flags=re.MULTILINE))
    folders = {path.name for path in CHECKOUT.iterdir() if path.is_dir()}
    assert mapped == {name for name in folders if not name.startswith((".", "__"))} - NOT_OURS


@pytest.mark.parametrize("folder", ["vla_crl", *DEFINITIONS, "docs", "tests", "docker"])
def test_every_root_folder_has_a_readme(folder: str) -> None:
    assert (CHECKOUT / folder / "README.md").is_file()


def test_the_map_of_the_package_names_what_is_there() -> None:
    text = (CHECKOUT / "vla_crl/README.md").read_text().partition("\n## ")[0]
    mapped = set(re.findall(r"^\| `([\w.]+)/?` \|", text, flags=re.MULTILINE))
    entries = (CHECKOUT / "vla_crl").iterdir()
    assert mapped == {path.name for path in entries if not path.name.startswith("_")} - {
        "README.md"
    }


def test_links_in_documents_lead_somewhere() -> None:
    for document in [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("*/README.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_dependency_is_in_the_tested_set() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {re.split(r"[^\w-]", entry)[0] for entries in lists for entry in entries}
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    tested = {line.split("==")[0] for line in lines if not line.startswith("#")}
    assert wanted - {"vla-crl"} <= tested  # "dev" takes extras of the project itself


def test_no_text_names_a_machine() -> None:
    pattern = re.compile(r"/(?:work|tmp|root|home/\w+)[/]")
    suffixes = {".py", ".md", ".toml", ".xml", ".txt", ".json", ".yml", ".html", ".csv"}
    tops = [path for path in CHECKOUT.iterdir() if path.name not in NOT_OURS]
    below = (path for top in tops for path in top.rglob("*"))
    ours = (path for path in (*tops, *below) if path.is_file() and path.suffix in suffixes)
    assert [path for path in ours if pattern.search(path.read_text(encoding="utf-8"))] == []
