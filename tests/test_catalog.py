import os
from pathlib import Path

import pytest

from vla_crl import catalog
from vla_crl.config import read_toml
from vla_crl.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parent.parent
KINDS = ("envs", "policies", "experiments")


@pytest.fixture
def small_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "envs/kitchen").mkdir(parents=True)
    (tmp_path / "envs/kitchen/suite.toml").write_text('description = "Two pots."\n')
    (tmp_path / "envs/robots").mkdir()
    for file in ("policies/tiny.toml", "experiments/demo.toml", "experiments/demo.md"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("seed = 0\n")
    monkeypatch.setattr(catalog, "catalog_dir", lambda kind: tmp_path / kind)
    return tmp_path


def test_names_are_folders_with_a_suite_file_and_toml_files(small_catalog: Path) -> None:
    assert catalog.list_suites() == ["kitchen"]
    assert catalog.list_policies() == ["tiny"]
    assert catalog.list_recipes() == ["demo"]


def test_a_name_leads_to_its_definition(small_catalog: Path) -> None:
    assert catalog.suite_path("kitchen") == small_catalog / "envs/kitchen"
    assert catalog.policy_path("tiny") == small_catalog / "policies/tiny.toml"
    assert catalog.recipe_path("demo") == small_catalog / "experiments/demo.toml"


def test_policies_and_recipes_may_be_paths(small_catalog: Path) -> None:
    checkpoint = small_catalog / "checkpoints/stage_1"
    checkpoint.mkdir(parents=True)
    recipe = small_catalog / "my.toml"
    recipe.write_text("")
    assert catalog.policy_path(str(checkpoint)) == checkpoint
    assert catalog.recipe_path(str(recipe)) == recipe


def test_definitions_of_ones_own_stand_beside_the_packages(
    small_catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for own, suite in (("mine", "garage"), ("ours", "garden")):
        (small_catalog / own / "envs" / suite).mkdir(parents=True)
        (small_catalog / own / "envs" / suite / "suite.toml").touch()
    (small_catalog / "ours/experiments").mkdir()
    (small_catalog / "ours/experiments/long.toml").touch()
    monkeypatch.chdir(small_catalog)
    monkeypatch.setenv("VLA_CRL_PATH", os.pathsep.join(["mine", str(small_catalog / "ours"), ""]))
    assert catalog.list_suites() == ["garage", "garden", "kitchen"]
    assert catalog.suite_path("garage") == small_catalog / "mine/envs/garage"
    assert catalog.recipe_path("long") == small_catalog / "ours/experiments/long.toml"
    assert catalog.list_policies() == ["tiny"]


def test_a_name_that_is_defined_twice_names_both_files(
    small_catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_catalog / "mine/policies").mkdir(parents=True)
    (small_catalog / "mine/policies/tiny.toml").touch()
    monkeypatch.setenv("VLA_CRL_PATH", str(small_catalog / "mine"))
    message = "mine/policies/tiny.toml: the name 'tiny' is taken by .*/policies/tiny.toml; rename"
    with pytest.raises(ConfigError, match=message):
        catalog.policy_path("tiny")


def test_a_folder_of_ones_own_that_does_not_exist_is_named(
    small_catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_CRL_PATH", str(small_catalog / "mine"))
    with pytest.raises(ConfigError, match="VLA_CRL_PATH: '.*/mine' is no folder; list folders"):
        catalog.list_suites()
    monkeypatch.setenv("VLA_CRL_PATH", str(small_catalog / "envs"))
    message = "envs' holds no envs/, policies/ or experiments/, nor a module of Python; name"
    with pytest.raises(ConfigError, match=message):
        catalog.list_suites()


def test_a_folder_in_the_working_directory_does_not_hide_a_misspelt_name(
    small_catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_catalog / "tyni").mkdir()
    monkeypatch.chdir(small_catalog)
    with pytest.raises(ConfigError, match="unknown policy 'tyni'. Did you mean 'tiny'"):
        catalog.policy_path("tyni")


def test_an_unknown_suite_names_the_nearest(small_catalog: Path) -> None:
    with pytest.raises(ConfigError, match="unknown suite 'kitchn'. Did you mean 'kitchen'"):
        catalog.suite_path("kitchn")
    with pytest.raises(ConfigError, match="unknown suite 'robots'"):
        catalog.suite_path("robots")


def test_a_suite_whose_name_cannot_be_written_elsewhere_is_refused(small_catalog: Path) -> None:
    (small_catalog / "envs/my kitchen").mkdir()
    (small_catalog / "envs/my kitchen/suite.toml").touch()
    with pytest.raises(ConfigError, match="suite 'my kitchen': expected a folder of letters"):
        catalog.suite_path("my kitchen")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not a text file in UTF-8"),
        (b"3", "expected what 'vla-crl evaluate --output' writes, a list"),
        (b"[3]", "row 0: got 3, expected settings of ResultRow"),
        (
            b'[{"task": "lift", "successes": 0, "episodes": 0}]',
            "row 0: episodes = 0, expected at",
        ),
        (b'[{"task": "lift", "successes": "0", "episodes": 1}]', "row 0: successes = '0' .str., e"),
    ],
)
def test_an_experts_record_that_is_none_is_refused(
    small_catalog: Path, content: bytes, message: str
) -> None:
    (small_catalog / "envs/kitchen/expert.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"expert.json: {message}"):
        catalog.expert_success("kitchen")


def test_what_the_expert_reached_is_kept_for_each_controller(small_catalog: Path) -> None:
    for name, successes in (("expert", 3), ("expert@joint_position", 1)):
        rows = f'[{{"task": "lift", "successes": {successes}, "episodes": 4}}]'
        (small_catalog / f"envs/kitchen/{name}.json").write_text(rows)
    assert catalog.expert_success("kitchen") == {"lift": 0.75}
    assert catalog.expert_success("kitchen@joint_position") == {"lift": 0.25}
    assert catalog.expert_success("kitchen@eef_position") == {}


def test_a_controller_is_no_part_of_a_suites_folder(small_catalog: Path) -> None:
    assert catalog.suite_path("kitchen@eef_pose") == small_catalog / "envs/kitchen"


def test_an_unknown_recipe_names_the_nearest(small_catalog: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'demoo'. Did you mean 'demo'"):
        catalog.recipe_path("demoo")


def test_a_path_that_does_not_exist_is_an_error(small_catalog: Path) -> None:
    message = (
        "runs/x/stage_1: no such policy, looked for at /.*/runs/x/stage_1. If it has been moved, "
        "name the new place, also to resume a run. Known names: tiny."
    )
    with pytest.raises(ConfigError, match=message):
        catalog.policy_path("runs/x/stage_1")


def test_a_folder_is_not_a_recipe(small_catalog: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder, expected a recipe file \(.toml\)"):
        catalog.recipe_path(str(small_catalog / "envs"))


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ('description = "Two pots."\n', "Two pots."),
        ("# A small one.\nseed = 0\n", "A small one."),
        ('# How to read this.\ndescription = "Two pots."\n', "Two pots."),
        ("seed = 0\n# not the first line\n", ""),
    ],
)
def test_the_description_is_the_key_or_else_the_first_comment(
    tmp_path: Path, text: str, description: str
) -> None:
    (tmp_path / "a.toml").write_text(text)
    assert catalog.description(tmp_path / "a.toml") == description


def test_the_wheels_copy_comes_before_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "vla_crl"
    (package / "_catalog/envs").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    assert catalog.catalog_dir("envs") == package / "_catalog/envs"


def test_a_stranger_in_site_packages_is_not_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vla_crl").mkdir()
    (tmp_path / "envs").mkdir()
    monkeypatch.setattr(catalog, "__file__", str(tmp_path / "vla_crl/catalog.py"))
    with pytest.raises(ConfigError, match="no envs/ in .*; reinstall vla-crl"):
        catalog.catalog_dir("envs")


def test_load_attribute_imports_what_the_string_names() -> None:
    assert catalog.load_attribute("vla_crl.errors:ConfigError", "here") is ConfigError


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("vla_crl.errors", "^here: 'vla_crl.errors' is not of the form 'package.module:Attr'"),
        ("vla_crl.eror:X", "^here: 'vla_crl.eror:X': there is no module 'vla_crl.eror'"),
        ("no_such_package.a:X", "there is no module 'no_such_package'"),
        (".errors:X", "^here: '.errors:X' is not of the form"),
        ("a..b:X", "^here: 'a..b:X' is not of the form"),
        ("vla_crl.errors:ConfigErr", "unknown name in vla_crl.errors 'ConfigErr'. Did you mean 'C"),
    ],
)
def test_load_attribute_says_what_is_wrong_with_the_string(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        catalog.load_attribute(target, "here")


def test_a_module_in_a_folder_of_ones_own_is_imported(own_folder: Path) -> None:
    (own_folder / "my_things.py").write_text(
        "from my_parts.inner import NUMBER\nTHING = NUMBER + 1\n"
    )
    (own_folder / "my_parts").mkdir()
    (own_folder / "my_parts/__init__.py").touch()
    (own_folder / "my_parts/inner.py").write_text("NUMBER = 2\n")
    assert catalog.load_attribute("my_things:THING", "here") == 3
    assert catalog.load_attribute("my_parts.inner:NUMBER", "here") == 2
    assert catalog.own_modules(own_folder) == {
        "my_things": own_folder / "my_things.py",
        "my_parts": own_folder / "my_parts/__init__.py",
    }


def test_a_folder_of_ones_own_may_hold_modules_alone(own_folder: Path) -> None:
    (own_folder / "my_things.py").touch()
    assert catalog.own_folders() == [own_folder]
    assert "tabletop_goal" in catalog.list_suites()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import os\nclass A(:\n", "broken.py:2: SyntaxError: invalid syntax"),
        ("if True:\nx = 1\n", "broken.py:2: IndentationError: expected an indented block"),
        ("\n\nx = undefined\n", "broken.py:3: NameError: name 'undefined' is not defined"),
        ("import no_such_package\n", "broken.py:1: ModuleNotFoundError: No module named 'no_su"),
        ("from os import no_name\n", "broken.py:1: ImportError: cannot import name 'no_name'"),
        ("def f():\n    return {}['x']\nf()\n", "broken.py:2: KeyError: 'x'"),
        ("raise ValueError('two\\nlines')\n", "broken.py:1: ValueError: two lines"),
        ("assert 1 == 2\n", "broken.py:1: AssertionError"),
        ("import sys\nsys.exit(3)\n", "broken.py:2: SystemExit: 3"),
        ("open('/no/such/file')\n", "broken.py:1: FileNotFoundError: /no/such/file: No such file"),
        ("x = '\0'\n", "null bytes"),
    ],
)
def test_a_module_of_ones_own_that_fails_is_told_with_file_and_line(
    own_folder: Path, text: str, told: str
) -> None:
    (own_folder / "broken.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        catalog.load_attribute("broken:X", "method")
    assert str(error.value).startswith("method: 'broken:X' cannot be imported: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_broken_is_named_where_it_is_not_where_it_was_imported(own_folder: Path) -> None:
    (own_folder / "outer.py").write_text("import inner\n")
    (own_folder / "inner.py").write_text("x = (\n")
    with pytest.raises(ConfigError, match=r"/inner.py:1: SyntaxError: '\(' was never closed"):
        catalog.load_attribute("outer:X", "here")


def test_a_module_whose_name_is_taken_is_told(own_folder: Path) -> None:
    (own_folder / "statistics.py").write_text("X = 1\n")
    message = "/statistics.py: the name 'statistics' is taken by /.*/statistics.py; rename it"
    with pytest.raises(ConfigError, match=message):
        catalog.load_attribute("statistics:X", "here")


def test_a_misspelt_module_names_the_nearest_of_ones_own(own_folder: Path) -> None:
    (own_folder / "my_things.py").write_text("THING = 1\nimport os\n")
    message = (
        "'my_thing:THING': there is no module 'my_thing'; one of your own must be installed, or "
        "its folder be in VLA_CRL_PATH or PYTHONPATH. Did you mean 'my_things'?"
    )
    with pytest.raises(ConfigError, match=message):
        catalog.load_attribute("my_thing:THING", "here")
    with pytest.raises(ConfigError, match="'os.no.such:X': there is no module 'os.no'"):
        catalog.load_attribute("os.no.such:X", "here")


def test_only_what_fits_is_suggested(own_folder: Path) -> None:
    (own_folder / "my_things.py").write_text("import os\nANSWER = 'x'\nANSWERS = 42\n")
    with pytest.raises(ConfigError) as error:
        catalog.load_attribute("my_things:ANSER", "here", fits=lambda v: isinstance(v, int))
    assert str(error.value) == (
        "here: unknown name in my_things 'ANSER'. Did you mean 'ANSWERS'? Known: ANSWERS."
    )


def test_every_definition_in_the_catalogue_is_toml() -> None:
    for kind in KINDS:
        for path in catalog.catalog_dir(kind).rglob("*.toml"):
            read_toml(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_folders_hold_no_python(kind: str) -> None:
    assert list((CHECKOUT / kind).rglob("*.py")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_definition_folder_says_which_code_runs_it(kind: str) -> None:
    text = (CHECKOUT / kind / "README.md").read_text()
    assert "Definitions only. The code that" in text
