import re
import subprocess
from pathlib import Path

import pytest
import torch

from vla_crl.continual.generations import Generations
from vla_crl.errors import CheckpointError


@pytest.fixture
def generations(tmp_path: Path) -> Generations:
    """With states 1 to 3 saved, of which two are kept."""
    generations = Generations(tmp_path / "state")
    for number in (1, 2, 3):
        generations.save({"stage": number}, {"weights": torch.full((100,), float(number))})
    return generations


def names(generations: Generations) -> list[str]:
    return sorted(path.name for path in generations.folder.iterdir())


def loaded(folder: Path) -> int | None:
    """Return which state another process finds."""
    state = Generations(folder).load()
    if state is None:
        return None
    assert (state.tensors["weights"] == state.record["stage"]).all()
    assert state.record == {"stage": state.record["stage"]}
    return state.record["stage"]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_of_two_generations_is_loaded(generations):
    assert names(generations) == ["000002", "000003"]
    assert loaded(generations.folder) == 3


def test_nothing_is_loaded_where_nothing_was_saved(tmp_path):
    assert loaded(tmp_path / "state") is None


def test_other_programs_can_check_the_sums(generations):
    folder = generations.folder / "000003"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("damage", [flip_bit, cut_in_half, Path.unlink])
@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "SHA256SUMS"])
def test_of_a_damaged_state_the_older_one_is_used_with_a_word_about_it(
    generations, capsys, damage, file
):
    damage(generations.folder / "000003" / file)
    assert loaded(generations.folder) == 2
    assert f"{generations.folder}/000003 is damaged (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_bit, r"state.json has the SHA-256 \w{8}\.\.\., expected \w{8}\.\.\."),
        (Path.unlink, r".*/state.json: cannot be read \(No such file or directory\)"),
    ],
)
def test_a_damage_is_told_in_words(generations, capsys, damage, message):
    damage(generations.folder / "000003" / "state.json")
    loaded(generations.folder)
    line = " ".join(capsys.readouterr().err.split())
    assert re.search(rf"000003 is damaged \({message}\); it is not used", line)


def test_a_damaged_state_never_takes_the_place_of_a_good_one(generations):
    flip_bit(generations.folder / "000003" / "state.safetensors")
    again = Generations(generations.folder)
    assert again.load() is not None
    again.save({"stage": 4}, {"weights": torch.full((100,), 4.0)})
    assert names(again) == ["000002", "000004"]
    flip_bit(generations.folder / "000004" / "state.safetensors")
    assert loaded(generations.folder) == 2


def test_where_both_are_damaged_nothing_is_loaded(generations, capsys):
    for folder in generations.folder.iterdir():
        cut_in_half(folder / "SHA256SUMS")
    assert loaded(generations.folder) is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_state_of_another_version_is_an_error(generations):
    folder = generations.folder / "000003"
    (folder / "state.json").write_text('{"format": 0}')
    with (folder / "SHA256SUMS").open("w") as sums:
        files = ["state.json", "state.safetensors"]
        subprocess.run(["sha256sum", *files], cwd=folder, check=True, stdout=sums)
    with pytest.raises(CheckpointError, match="000003: written by another version; resume with th"):
        loaded(generations.folder)


def test_a_save_that_fails_leaves_the_states_before_it(generations, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("vla_crl.continual.generations.save_tensors", fail)
    with pytest.raises(OSError, match="disk full"):
        generations.save({"stage": 4}, {})
    assert names(generations) == ["000002", "000003"]


def test_cleared_states_are_gone(generations):
    generations.clear()
    assert not generations.folder.exists()
    generations.clear()
    assert loaded(generations.folder) is None
