import logging
import subprocess
from pathlib import Path

import pytest

from vla_crl.errors import CheckpointError
from vla_crl.files.checksums import find_damage, require_undamaged, write_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two files and one in a folder, all summed, and a later one that is not."""
    (tmp_path / "vlm").mkdir()
    for name in ("a.json", "b.json", "vlm/c.json"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path, "a.json", "vlm/c.json")
    write_sums(tmp_path, "b.json")
    (tmp_path / "vlm/later.json").touch()
    return tmp_path


def test_other_programs_write_and_check_the_same_sums(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    for flag in ("--text", "--binary"):
        with (folder / "SHA256SUMS").open("w") as sums:
            files = ["a.json", "b.json"]
            subprocess.run(["sha256sum", flag, *files], cwd=folder, check=True, stdout=sums)
        assert find_damage(folder, "a.json", "b.json") is None


def test_files_that_are_as_they_were_are_not_damaged(folder: Path) -> None:
    assert find_damage(folder, "a.json", "b.json", "vlm/") is None


def test_damage_is_told_of_the_files_that_are_asked_for(folder: Path) -> None:
    (folder / "vlm/c.json").write_text("d")
    assert find_damage(folder, "a.json", "b.json") is None
    # sha256sum of "d" and of "vlm/c.json"
    message = "vlm/c.json has the SHA-256 18ac3e73..., expected "
    assert (find_damage(folder, "vlm/") or "").startswith(message)
    (folder / "vlm/c.json").unlink()
    message = f"{folder}/vlm/c.json: cannot be read (No such file or directory)"
    assert find_damage(folder, "vlm/") == message


def test_a_file_without_a_sum_beside_others_is_told(folder: Path) -> None:
    assert find_damage(folder, "vlm/later.json") == "SHA256SUMS does not name vlm/later.json"
    (folder / "SHA256SUMS").write_bytes(b"\xff\x00")
    assert "SHA256SUMS: not a text file in UTF-8" in (find_damage(folder, "a.json") or "")


def test_a_damaged_checkpoint_is_refused_and_what_helps_is_told(folder: Path) -> None:
    require_undamaged(folder, "a.json")
    (folder / "a.json").write_text("changed")
    message = (
        f"{folder} is damaged: a.json has the .*; copy the whole checkpoint again. Where it was "
        f"changed on purpose, remove {folder}/SHA256SUMS"
    )
    with pytest.raises(CheckpointError, match=message):
        require_undamaged(folder, "a.json")


def test_a_checkpoint_without_sums_is_taken_with_a_word_about_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "SHA256SUMS").unlink()
    with caplog.at_level(logging.WARNING):
        require_undamaged(folder, "a.json")
    assert caplog.messages == [f"{folder}: has no SHA256SUMS, so damage may pass unnoticed"]
