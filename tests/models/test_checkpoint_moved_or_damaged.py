import json
import shutil

import pytest
import torch

from vla_crl.catalog import catalog_dir
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.checksums import find_damage, write_sums
from vla_crl.files.state_dicts import load_tensors, save_tensors
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import POLICY_FILE, load_policy, save_adapter, save_policy
from vla_crl.models.lora import LoRAConfig


@pytest.fixture
def moving(policy, tmp_path):
    """A folder with a base policy and a run's checkpoint, to be moved."""
    save_policy(policy, tmp_path / "here/base")
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, tmp_path / "here/run/stage_1", str(tmp_path / "here/base"))
    return tmp_path / "here"


def rank_of(policy) -> int:
    (rank,) = set(policy.adapters.layouts["default"].ranks.values())
    return rank


def test_a_checkpoint_that_is_copied_alone_finds_its_base_where_it_was(moving, tmp_path):
    shutil.move(moving / "run", tmp_path / "there")
    assert rank_of(load_policy(tmp_path / "there/stage_1")) == 2


def test_a_checkpoint_that_moves_with_its_base_finds_it_from_where_it_is(
    moving, tmp_path, monkeypatch
):
    (tmp_path / "far").mkdir()
    shutil.move(moving, tmp_path / "far/there")
    monkeypatch.chdir(tmp_path / "far/there/run/stage_1")
    assert rank_of(load_policy("../stage_1")) == 2


def test_of_two_policies_in_the_place_of_the_base_the_weights_decide(moving, make_policy, tmp_path):
    shutil.copytree(moving / "run", tmp_path / "there/run")
    other = make_policy()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    save_policy(other, tmp_path / "there/base")
    assert rank_of(load_policy(tmp_path / "there/run/stage_1")) == 2
    shutil.rmtree(moving / "base")
    message = (
        f"'{tmp_path}/there/base' has other weights than those that it was trained on; "
        f"'{moving}/base' is not there. Put it back .* or name its place with --base"
    )
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "there/run/stage_1")


def test_the_place_of_a_base_that_was_moved_can_be_named(moving, make_policy, tmp_path):
    shutil.move(moving / "base", tmp_path / "moved")
    folder = moving / "run/stage_1"
    assert rank_of(load_policy(folder, base=tmp_path / "moved")) == 2
    with pytest.raises(CheckpointError, match="'tiny' has other weights than those that it was"):
        load_policy(folder, base="tiny")
    with pytest.raises(CheckpointError, match="'tinny' is not there"):
        load_policy(folder, base="tinny")
    with pytest.raises(ConfigError, match="policy 'tiny' has no base policy; leave out 'moved'"):
        load_policy("tiny", base="moved")


def test_adapters_that_are_each_others_base_are_refused(moving):
    first, second = moving / "run/stage_1", moving / "run/stage_2"
    shutil.copytree(first, second)
    for folder, other in ((first, second), (second, first)):
        record = json.loads((folder / "adapter.json").read_text())
        record |= {"base": str(other), "base_from_here": f"../{other.name}"}
        (folder / "adapter.json").write_text(json.dumps(record))
        write_sums(folder, "adapter.json")
    with pytest.raises(CheckpointError, match="stage_1' is itself, by way of others"):
        load_policy(first)


def flip_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["base/model.safetensors", "run/stage_1/adapter.safetensors"])
def test_a_flipped_bit_in_the_weights_is_found(moving, file):
    flip_bit(moving / file)
    with pytest.raises(CheckpointError, match=r"safetensors has the SHA-256 .*, expected"):
        load_policy(moving / "run/stage_1")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("base/policy.json", '"noise_level": 0.6', '"noise_level": 0.8'),
        ("run/stage_1/adapter.json", '"scale": 8.0', '"scale": 9.0'),
    ],
)
def test_a_changed_setting_is_found(moving, file, old, new):
    path = moving / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=r"json has the SHA-256 .*, expected .*remove"):
        load_policy(moving / "run/stage_1")
    (path.parent / "SHA256SUMS").unlink()
    load_policy(moving / "run/stage_1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor > 0, "is of type bool, expected float32"),
        (lambda tensor: tensor.long(), "is of type int64, expected float32"),
        (lambda tensor: tensor.to(torch.complex64), "is of type complex64, expected float32"),
        (lambda tensor: tensor.to(torch.bfloat16), "is of type bfloat16, expected float32"),
        (lambda tensor: tensor * torch.nan, "has .* not finite, first nan"),
        (lambda tensor: tensor.flatten()[1:], "has shape"),
    ],
)
@pytest.mark.parametrize("file", ["base/model.safetensors", "run/stage_1/adapter.safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_somebody_else_wrote_are_of_the_right_type(
    moving, file, change, message, dtype
):
    path = moving / file
    tensors = load_tensors(path)
    name = next(name for name in tensors if name.endswith("time_mlp.0.weight") or "lora_A" in name)
    save_tensors(tensors | {name: change(tensors[name])}, path)
    (path.parent / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=f"{path.parent}.*'{name}' {message}"):
        load_policy(moving / "run/stage_1", dtype=dtype)


def test_the_weights_that_ship_are_undamaged():
    """Their checksums lie beside them."""
    for kind in ("policies", "experiments"):
        for file in catalog_dir(kind).rglob("*.safetensors"):
            sums = (file.parent / "SHA256SUMS").read_text()
            names = {line[66:] for line in sums.splitlines()}
            settings = "adapter.json" if file.name == "adapter.safetensors" else POLICY_FILE
            assert names == {file.name, settings}
            assert find_damage(file.parent, *names) is None
