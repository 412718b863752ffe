import json

import pytest
import torch

from vla_crl.errors import CheckpointError
from vla_crl.files.checksums import write_sums
from vla_crl.files.state_dicts import load_tensors, save_tensors
from vla_crl.models.adapters import add_lora, train_only
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.routes import TaskRoute
from vla_crl.models.stage_checkpoint import restore, save_checkpoint
from vla_crl.models.weights import base_fingerprint


@pytest.fixture
def base(policy, tmp_path):
    save_policy(policy, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapted(base):
    """A policy with three adapters, chosen by task."""
    policy = load_policy(base)
    add_lora(policy, LoRAConfig(rank=2, ranks={"*.q_proj": 1}))
    bank = policy.adapters
    bank.add("other", LoRAConfig(rank=3, site="both"), trained=False)
    bank.add("resting", LoRAConfig(rank=1), trained=False)
    for name in bank.names:
        for _, up in bank.matrices(name).values():
            torch.nn.init.normal_(up, std=0.3)
    bank.activate({"default": 1.0, "other": -0.5})
    bank.route = TaskRoute(tasks={"one": {"default": 1.0}, "two": {"other": 0.5}}, default={})
    return policy


def chunks(policy, observation):
    """Return what it does in each task, and where no task is told."""
    found = []
    for task in ("one", "two", "three", None):
        for deterministic in (True, False):
            draws = torch.Generator().manual_seed(0)
            with (
                policy.adapters.acting(
                    policy.adapters.route_of(task) if task else policy.adapters.scales
                ),
                torch.no_grad(),
            ):
                chunk = policy.act(
                    policy.encode(observation), deterministic=deterministic, generator=draws
                )
            found += [chunk.actions, chunk.log_prob, chunk.value]
    return found


def assert_acts_alike(one, other, observation) -> None:
    assert one.adapters.record() == other.adapters.record()
    found, expected = chunks(one, observation), chunks(other, observation)
    assert all(map(torch.equal, found, expected))
    assert len({str(actions.tolist()) for actions in found[::6]}) == 4


def test_adapters_and_what_picks_them_are_loaded(adapted, base, observation, tmp_path):
    save_checkpoint(adapted, tmp_path / "stage_1", str(base))
    names = sorted(path.name for path in (tmp_path / "stage_1").iterdir())
    assert names == ["SHA256SUMS", "adapter.json", "adapter.safetensors"]
    loaded, restored = load_policy(tmp_path / "stage_1"), load_policy(base)
    restore(restored, tmp_path / "stage_1")
    for policy in (loaded, restored):
        assert_acts_alike(policy, adapted, observation)
    assert base_fingerprint(loaded) == base_fingerprint(load_policy(base))


@pytest.mark.parametrize("how", ["trained", "changed"])
def test_the_whole_policy_is_loaded_where_its_base_was_trained(
    adapted, base, observation, tmp_path, how
):
    if how == "trained":
        adapted.get_parameter("head.expert.norm.weight").requires_grad_()
    with torch.no_grad():
        adapted.get_parameter("head.expert.norm.weight").add_(0.1)
    save_checkpoint(adapted, tmp_path / "stage_1", str(base))
    names = sorted(path.name for path in (tmp_path / "stage_1").iterdir())
    assert names == ["SHA256SUMS", "model.safetensors", "policy.json"]
    loaded, restored = load_policy(tmp_path / "stage_1"), load_policy(base)
    restore(restored, tmp_path / "stage_1")
    for policy in (loaded, restored):
        assert_acts_alike(policy, adapted, observation)
    # A checkpoint that it makes later is whole again, though nothing is trained now.
    save_checkpoint(restored, tmp_path / "stage_2", str(base))
    assert (tmp_path / "stage_2/policy.json").is_file()


def test_a_policy_without_adapters_is_stored_whole_before_it_is_trained(base, tmp_path):
    policy = load_policy(base)
    train_only(policy, "head", "value")
    save_checkpoint(policy, tmp_path / "stage_0", str(base))
    assert base_fingerprint(load_policy(tmp_path / "stage_0")) == base_fingerprint(policy)


def test_a_checkpoint_of_the_other_kind_is_replaced(adapted, base, observation, tmp_path):
    folder = tmp_path / "stage_1"
    save_checkpoint(adapted, folder, str(base))
    with torch.no_grad():
        adapted.get_parameter("head.expert.norm.weight").add_(0.1)
    save_checkpoint(adapted, folder, str(base))
    assert_acts_alike(load_policy(folder), adapted, observation)
    fresh = load_policy(base)
    add_lora(fresh, LoRAConfig(rank=2))
    save_checkpoint(fresh, folder, str(base))
    assert load_policy(folder).adapters.names == ("default",)


def test_adapters_on_a_base_that_was_trained_before_find_it(base, observation, tmp_path):
    policy = load_policy(base)
    with torch.no_grad():
        policy.get_parameter("head.expert.norm.weight").add_(0.1)
    save_checkpoint(policy, tmp_path / "full", str(base))
    further = load_policy(tmp_path / "full")
    add_lora(further, LoRAConfig(rank=2))
    save_checkpoint(further, tmp_path / "stage_1", str(tmp_path / "full"))
    assert (tmp_path / "stage_1/adapter.json").is_file()
    loaded = load_policy(tmp_path / "stage_1")
    assert torch.equal(
        loaded.get_parameter("head.expert.norm.weight"),
        policy.get_parameter("head.expert.norm.weight"),
    )


def edit(folder, file, change):
    record = json.loads((folder / file).read_text())
    change(record)
    (folder / file).write_text(json.dumps(record))
    write_sums(folder, file)


def rename_adapter(record):
    layouts = record["adapters"]["layouts"]
    layouts["strange"] = layouts.pop("resting")


def drop_layer(record):
    record["adapters"]["layouts"]["default"]["ranks"].pop("head.expert.action_out")


def other_rank(record):
    record["adapters"]["layouts"]["default"]["ranks"]["head.expert.action_out"] = 5


def act_unknown(record):
    record["adapters"]["acting"]["nobody"] = 1.0


def route_unknown(record):
    record["adapters"]["route"]["tasks"]["one"]["nobody"] = 1.0


def other_route(record):
    record["adapters"]["route"]["kind"] = "tsk"


def wrong_scale(record):
    record["adapters"]["acting"]["default"] = "1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename_adapter,
            "cannot be loaded into the policy: adapters: '.*resting.* is unknown|miss",
        ),
        (drop_layer, "into the policy: adapters: 'head.expert.action_out.* is unknown"),
        (other_rank, r"into the policy: adapters: 'head.expert.action_out.* expected .*5"),
        (act_unknown, "into the policy: adapters: activate: unknown adapter 'nobody'"),
        (route_unknown, "into the policy: adapters: route: unknown adapter 'nobody'"),
        (other_route, "kind = 'tsk', expected 'task'.*written by another version"),
        (wrong_scale, "acting.default = '1' .str., expected float"),
    ],
)
def test_a_record_that_does_not_fit_its_numbers_is_refused(
    adapted, base, tmp_path, change, message
):
    save_checkpoint(adapted, tmp_path / "stage_1", str(base))
    edit(tmp_path / "stage_1", "adapter.json", change)
    with pytest.raises(CheckpointError, match=message):
        load_policy(tmp_path / "stage_1")


def test_a_whole_policy_of_another_run_is_not_restored(adapted, base, tmp_path, make_policy):
    with torch.no_grad():
        adapted.get_parameter("head.expert.norm.weight").add_(0.1)
    save_checkpoint(adapted, tmp_path / "stage_1", str(base))
    other = make_policy(insulation="none")
    message = "stage_1: is of another policy: its insulation is 'full', expected 'none'; take a"
    with pytest.raises(CheckpointError, match=message):
        restore(other, tmp_path / "stage_1")
    edit(tmp_path / "stage_1", "policy.json", act_unknown)
    with pytest.raises(CheckpointError, match="stage_1 does not fit the policy: .*unknown adapter"):
        restore(load_policy(base), tmp_path / "stage_1")


def test_a_whole_policy_that_is_damaged_is_not_restored(base, tmp_path):
    policy = load_policy(base)
    train_only(policy, "head", "value")
    folder = tmp_path / "stage_1"
    save_checkpoint(policy, folder, str(base))
    tensors = load_tensors(folder / "model.safetensors")
    save_tensors(
        tensors | {"state_in.bias": tensors["state_in.bias"] + 1}, folder / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="stage_1 is damaged: model.safetensors has the SHA"):
        restore(policy, folder)
    write_sums(folder, "model.safetensors")
    del tensors["state_in.bias"]
    save_tensors(tensors, folder / "model.safetensors")
    write_sums(folder, "model.safetensors")
    with pytest.raises(
        CheckpointError, match="'state_in.bias' is missing .*; it is damaged, or of"
    ):
        restore(policy, folder)


def test_a_backbone_that_is_held_in_bfloat16_is_not_stored_rounded(base, tmp_path):
    policy = load_policy(base, dtype="bfloat16")
    train_only(policy, "head", "value")
    with pytest.raises(CheckpointError, match="the backbone is held in torch.bfloat16, rounded"):
        save_checkpoint(policy, tmp_path / "stage_1", str(base))


def test_exploration_of_the_run_is_kept(base, tmp_path):
    policy = load_policy(base)
    add_lora(policy, LoRAConfig(rank=2))
    policy.explore({"noise_level": 0.3})
    save_checkpoint(policy, tmp_path / "stage_1", str(base))
    assert load_policy(tmp_path / "stage_1").exploration == policy.exploration
