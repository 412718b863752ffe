import json
import shutil
from dataclasses import replace

import pytest
import torch

from vla_crl.catalog import policy_path
from vla_crl.contracts import ARM
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.checksums import write_sums
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import (
    MODEL_FILE,
    POLICY_FILE,
    build_policy,
    load_adapter,
    load_policy,
    read_card,
    save_adapter,
    save_policy,
)
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.stage_checkpoint import restore, save_checkpoint


def actions(policy, observation) -> torch.Tensor:
    return policy.act(policy.encode(observation), deterministic=True).trace.x_next


def randomize_adapters(policy) -> None:
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)


def edit_record(directory, file=POLICY_FILE, **changes) -> None:
    """Change what a checkpoint says of itself, as if it had been written so."""
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    write_sums(directory, file)


def test_saved_policy_loads_with_the_same_config_and_actions(make_policy, observation, tmp_path):
    policy = make_policy(insulation=0.5)
    policy.norm_stats.action_mean.fill_(0.25)
    save_policy(policy, tmp_path / "base", {"success": 0.5})
    loaded = load_policy(tmp_path / "base")
    assert loaded.config == policy.config
    assert torch.equal(actions(loaded, observation), actions(policy, observation))
    assert loaded.norm_stats.action_mean[0] == 0.25
    assert read_card(tmp_path / "base") == {"success": 0.5}


def test_saved_policy_keeps_its_adapters_and_what_is_trainable(policy, observation, tmp_path):
    add_lora(policy, LoRAConfig(rank=2, site="both"))
    randomize_adapters(policy)
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.adapters.record() == policy.adapters.record()
    assert torch.equal(actions(loaded, observation), actions(policy, observation))
    for (name, ours), theirs in zip(policy.named_parameters(), loaded.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad, name


def test_saved_adapter_loads_into_the_base(make_policy, observation, tmp_path):
    policy, base = make_policy(), make_policy()
    add_lora(policy, LoRAConfig(rank=2))
    randomize_adapters(policy)
    save_adapter(policy, tmp_path, "tiny")
    load_adapter(base, tmp_path)
    assert torch.equal(actions(base, observation), actions(policy, observation))


def test_folders_may_be_strings(make_policy, observation, tmp_path):
    base, stage = str(tmp_path / "new" / "base"), str(tmp_path / "new" / "stage")
    policy = make_policy()
    save_policy(policy, base, {"success": 0.5})
    assert read_card(base) == {"success": 0.5}
    add_lora(policy, LoRAConfig(rank=2))
    randomize_adapters(policy)
    save_checkpoint(policy, stage, base)
    fresh = load_policy(base)
    restore(fresh, stage)
    assert torch.equal(actions(fresh, observation), actions(policy, observation))


def test_adapters_know_what_kind_of_pictures_they_were_trained_on(make_policy, tmp_path):
    policy, base = make_policy(), make_policy()
    add_lora(policy, LoRAConfig(rank=2))
    policy.config = replace(policy.config, pictures="turned")
    save_adapter(policy, tmp_path, "tiny")
    load_adapter(base, tmp_path)
    assert base.config.pictures == "turned"


def test_whoever_may_read_new_files_may_read_weights(policy, tmp_path):
    save_policy(policy, tmp_path)
    (tmp_path / "new").touch()
    assert (tmp_path / MODEL_FILE).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_saving_leaves_no_other_files_and_keeps_neighbours(policy, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        save_policy(policy, tmp_path)
    names = ["SHA256SUMS", MODEL_FILE, "notes.txt", POLICY_FILE]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_preset_builds_a_policy_with_random_weights():
    policy = build_policy("tiny", embodiment=ARM)
    assert 1_000_000 < sum(p.numel() for p in policy.parameters()) < 2_000_000


def test_a_file_that_is_no_preset_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="notes.txt' is a file, expected a checkpoint's folder"):
        load_policy(tmp_path / "notes.txt")


def test_a_device_in_the_place_of_a_policy_is_told():
    with pytest.raises(ConfigError, match="^/dev/zero: is a device, expected a file"):
        load_policy("/dev/zero")


def test_a_folder_of_the_presets_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    policy = load_policy("tiny")
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, tmp_path / "stage_1", "tiny")
    assert json.loads((tmp_path / "stage_1/adapter.json").read_text())["base"] == "tiny"


def test_a_base_policy_that_is_gone_is_told_with_the_checkpoint(policy, tmp_path):
    save_policy(policy, tmp_path / "base")
    add_lora(policy, LoRAConfig(rank=2))
    base = str(tmp_path / "base")
    save_adapter(policy, tmp_path / "stage_1", base)
    shutil.rmtree(base)
    message = (
        f"stage_1: its base policy cannot be loaded: '{base}' is not there. Put it back .*or name "
        "its place with --base"
    )
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "stage_1")


def test_a_preset_without_weights_tells_how_to_make_them(tmp_path):
    shutil.copy(policy_path("tiny"), tmp_path / "mine.toml")
    with pytest.raises(CheckpointError, match="pretrain RECIPE --policy .*mine.toml --output .*mi"):
        load_policy(tmp_path / "mine.toml")


def test_a_preset_of_ones_own_is_found_from_everywhere(policy, tmp_path, monkeypatch):
    shutil.copy(policy_path("tiny"), tmp_path / "mine.toml")
    shutil.copytree(policy_path("tiny").with_suffix(""), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    policy = load_policy("./mine.toml")
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, tmp_path / "stage_1", "./mine.toml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_policy("../stage_1")


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown policy 'tinny'. Did you mean 'tiny'?"):
        load_policy("tinny")


def test_missing_weights_are_named(policy, tmp_path):
    save_policy(policy, tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match=rf"{MODEL_FILE}: cannot be read .*; copy the whole"):
        load_policy(tmp_path)


@pytest.mark.parametrize("name", [POLICY_FILE, MODEL_FILE])
def test_truncated_file_is_named(policy, tmp_path, name):
    save_policy(policy, tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        CheckpointError, match=rf"{name}(:| is) (not JSON|truncated).*; copy it again"
    ):
        load_policy(tmp_path)


def test_weights_of_another_size_are_refused(make_policy, tmp_path):
    save_policy(make_policy(), tmp_path / "a")
    save_policy(make_policy(value_width=9), tmp_path / "b")
    (tmp_path / "b" / MODEL_FILE).replace(tmp_path / "a" / MODEL_FILE)
    write_sums(tmp_path / "a", MODEL_FILE)
    message = "model.safetensors: 'value_head.* has shape .* of another policy.json than the"
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "a")


def test_other_format_is_refused(policy, tmp_path):
    save_policy(policy, tmp_path)
    edit_record(tmp_path, format=99)
    with pytest.raises(CheckpointError, match="format 99, expected 3; no other is read. Make the"):
        load_policy(tmp_path)


def test_adapters_of_another_format_are_refused(policy, tmp_path):
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, tmp_path, "tiny")
    edit_record(tmp_path, "adapter.json", format=1)
    with pytest.raises(CheckpointError, match="adapter.json: format 1, expected 3"):
        load_policy(tmp_path)


def test_record_without_a_part_is_refused(policy, tmp_path):
    save_policy(policy, tmp_path)
    (tmp_path / POLICY_FILE).write_text('{"format": 3, "config": {}}')
    with pytest.raises(CheckpointError, match="json: key 'card' of PolicyRecord is missing"):
        load_policy(tmp_path)


def test_unknown_setting_in_the_record_is_named(policy, tmp_path):
    save_policy(policy, tmp_path)
    edit_record(tmp_path, config={"vocabulary": ["pick"], "max_wrds": 3})
    with pytest.raises(CheckpointError, match="unknown key 'max_wrds'.*another version"):
        load_policy(tmp_path)


def test_a_vocabulary_that_has_a_word_twice_is_told_with_its_file(policy, tmp_path):
    save_policy(policy, tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    record = json.loads((tmp_path / "policy.json").read_text())
    record["config"]["vocabulary"] += record["config"]["vocabulary"][:1]
    (tmp_path / "policy.json").write_text(json.dumps(record))
    message = r"policy.json:config: vocabulary: \['.*'\] given more than once; remove"
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path)


def test_adapters_take_the_place_of_those_that_a_policy_has(make_policy, observation, tmp_path):
    policy, other = make_policy(), make_policy()
    add_lora(policy, LoRAConfig(site="backbone"))
    add_lora(other, LoRAConfig(site="action_expert"))
    randomize_adapters(policy)
    save_adapter(policy, tmp_path, "tiny")
    load_adapter(other, tmp_path)
    assert other.adapters.record() == policy.adapters.record()
    assert torch.equal(actions(other, observation), actions(policy, observation))


def test_adapters_of_layers_that_are_not_there_are_refused(policy, make_policy, tmp_path):
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, tmp_path, "tiny")
    text = (tmp_path / "adapter.json").read_text().replace("layers.0.q_proj", "layers.9.q_proj")
    (tmp_path / "adapter.json").write_text(text)
    write_sums(tmp_path, "adapter.json")
    message = "into the policy: adapter 'default': unknown layer 'head.expert.layers.9.q_proj'. Did"
    with pytest.raises(CheckpointError, match=message):
        load_adapter(make_policy(), tmp_path)


def test_saving_an_adapter_needs_adapters(policy, tmp_path):
    with pytest.raises(CheckpointError, match="has no adapters; use save_policy"):
        save_adapter(policy, tmp_path, "tiny")


def test_adapters_of_a_run_load_with_the_base_policy_they_name(policy, observation, tmp_path):
    save_policy(policy, tmp_path / "base")
    add_lora(policy, LoRAConfig(rank=2))
    randomize_adapters(policy)
    save_adapter(policy, tmp_path / "stage_1", str(tmp_path / "base"))
    loaded = load_policy(tmp_path / "stage_1")
    assert loaded.adapters.record() == policy.adapters.record()
    assert torch.equal(actions(loaded, observation), actions(policy, observation))


def test_adapters_of_other_weights_are_refused(policy, make_policy, tmp_path):
    save_policy(make_policy(), tmp_path / "base")
    add_lora(policy, LoRAConfig(rank=2))
    with torch.no_grad():
        next(parameter for parameter in policy.parameters()).add_(1.0)
    save_adapter(policy, tmp_path / "stage_1", str(tmp_path / "base"))
    message = "stage_1: its base .*: '.*/base' has other weights than those that it was trained on"
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "stage_1")


def test_weights_outside_of_the_adapters_must_not_change(policy, tmp_path):
    save_policy(policy, tmp_path / "base")
    loaded = load_policy(tmp_path / "base")
    add_lora(loaded, LoRAConfig(rank=2))
    randomize_adapters(loaded)
    save_adapter(loaded, tmp_path / "stage_1", str(tmp_path / "base"))
    with torch.no_grad():
        loaded.get_parameter("head.expert.norm.weight").add_(1.0)
    with pytest.raises(CheckpointError, match="weights outside of adapters and value head have ch"):
        save_adapter(loaded, tmp_path / "stage_2", str(tmp_path / "base"))
    message = "stage_1: its adapters were trained on other weights than the policy's; load '.*/base"
    with pytest.raises(CheckpointError, match=message):
        load_adapter(loaded, tmp_path / "stage_1")


@pytest.mark.parametrize(
    ("base", "message"), [("3", "'3' is not there"), ("itself", "'.*stage_1' is itself")]
)
def test_adapters_need_another_checkpoint_as_their_base(policy, tmp_path, base, message):
    folder = tmp_path / "stage_1"
    add_lora(policy, LoRAConfig(rank=2))
    save_adapter(policy, folder, "tiny")
    edit_record(folder, "adapter.json", base=str(folder) if base == "itself" else base)
    with pytest.raises(CheckpointError, match=f"its base policy cannot be loaded: {message}"):
        load_policy(folder)


def test_a_folder_without_a_checkpoint_says_what_to_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint.* RUN/checkpoints/stage_1"):
        load_policy(tmp_path)


def test_weights_that_are_a_folder_are_refused(policy, tmp_path):
    save_policy(policy, tmp_path)
    (tmp_path / MODEL_FILE).unlink()
    (tmp_path / MODEL_FILE).mkdir()
    with pytest.raises(CheckpointError, match="model.safetensors: is a folder, expected a file"):
        load_policy(tmp_path)


def test_settings_that_are_no_settings_are_refused(policy, tmp_path):
    save_policy(policy, tmp_path)
    edit_record(tmp_path, config=None)
    with pytest.raises(CheckpointError, match=r"config = None \(NoneType\), expected PolicyConfig"):
        load_policy(tmp_path)


@pytest.mark.parametrize("make", [load_policy, build_policy])
def test_a_device_that_is_not_there_is_named(make):
    with pytest.raises(ConfigError, match="device 'cuda:77': torch cannot use it here. "):
        make("tiny", device="cuda:77")
    with pytest.raises(ConfigError, match="device 'gpu': torch cannot use it here. "):
        make("tiny", device="gpu")
