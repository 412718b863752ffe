import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from vla_crl.cli.main import main
from vla_crl.compute import ComputeConfig
from vla_crl.files.checksums import find_damage
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, save_adapter, save_policy
from vla_crl.models.heads.tokens import TokensConfig
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.merging import merge_adapters
from vla_crl.models.routes import TaskRoute
from vla_crl.rollout.agents import PolicyAgent
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.lanes import close_lanes, simulate_lanes
from vla_crl.sim.native.suite import load_suite

TASK = "tabletop_goal.press_button"


def test_an_exported_policy_stands_alone_and_acts_as_the_checkpoint(
    exported, checkpoint, base, tmp_path
):
    alone = tmp_path / "elsewhere"
    exported.rename(alone)
    try:
        policy, before = load_policy(alone), load_policy(checkpoint)
        assert not policy.adapters.names
        seen = before.example_observation()
        with torch.no_grad():
            own, other = (p.act(p.encode(seen), deterministic=True) for p in (policy, before))
        torch.testing.assert_close(own.actions, other.actions, rtol=0.0, atol=1e-5)
        torch.testing.assert_close(own.value, other.value, rtol=0.0, atol=1e-5)
    finally:
        alone.rename(exported)


def test_every_file_but_the_page_is_in_the_checksums(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        *("policy.json", "model.safetensors", "tokenizer.json", "README.md", "SHA256SUMS"),
        *("encode.pt2", "act.pt2", "sample.pt2", "example.py"),
    }
    assert find_damage(exported, *(names - {"SHA256SUMS", "README.md"})) is None


def test_the_example_needs_torch_alone(exported):
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({str(exported / 'example.py')!r}, run_name='__main__')\n"
        "print(sorted({'vla_crl', 'transformers', 'peft', 'mujoco'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert lines[0].endswith("actions [1, 2, 7]")
    assert lines[1].startswith("delta_x ")


def test_the_page_is_a_card_of_the_hub(exported):
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported / "README.md")
    data: Any = card.data
    assert data.license == "apache-2.0"
    assert data.library_name == "vla-crl"
    assert data.pipeline_tag == "robotics"
    assert "continual-learning" in data.tags
    trained, heldout = data.eval_results
    # Stage 2 has 6 and 5 of 10 in the two trained tasks, 1 of 10 in the other.
    assert (trained.metric_type, trained.metric_value) == ("success_rate", 0.55)
    assert (heldout.dataset_type, heldout.metric_value) == ("tabletop_object", 0.1)
    assert "| `red` | trained | 60 % of 10 |" in card.text
    assert "seed 4: the policy after stage 2 of 2" in card.text
    assert "| encode | 64 |" in card.text
    assert "on Example CPU" in card.text


def test_tokenizer_json_reads_sentences_as_the_policy_does(exported):
    from tokenizers import Tokenizer

    own, policy = Tokenizer.from_file(str(exported / "tokenizer.json")), load_policy(exported)
    sentence = "Pick up the red cube, and place it in the basket"
    ids, mask = policy.tokenizer.encode([sentence.replace(",", "")])
    assert own.encode(sentence.replace(",", "")).ids == ids[mask].tolist()


def test_adapters_stay_apart_where_merging_is_not_asked_for(checkpoint, tmp_path, capsys):
    output = tmp_path / "apart"
    assert main(["export", "--policy", str(checkpoint), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    own, other = load_policy(output), load_policy(checkpoint)
    assert own.adapters.record() == other.adapters.record()
    seen = own.example_observation()
    with torch.no_grad():
        actions = [p.act(p.encode(seen), deterministic=True).actions for p in (own, other)]
    assert torch.equal(*actions)
    assert "LoRA adapters, 'default' of rank 2 in" in (output / "README.md").read_text()
    # What is exported again is still known by its success.
    again = tmp_path / "again"
    assert main(["export", "--policy", str(output), "--merge", "--output", str(again)]) == 0
    assert "| `mug` | never trained | 10 % of 10 |" in (again / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--policy", "tiny", "--merge"], "policy 'tiny' has no adapters to be merged; leave out"),
        (["--policy", "expert"], "is a script without weights; name a policy"),
        (["--policy", "tny"], "unknown policy 'tny'. Did you mean 'tiny'?"),
    ],
)
def test_what_cannot_be_exported_is_told_and_leaves_nothing(flags, said, tmp_path, capsys):
    assert main(["export", *flags, "--output", str(tmp_path / "new")]) == 2
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_policy_of_tokens_is_merged_and_told_but_is_no_program(
    make_small_policy, tmp_path, capsys
):
    policy = make_small_policy(load_suite("tabletop_object"), head=TokensConfig(num_bins=9))
    save_policy(policy, tmp_path / "base")
    add_lora(policy, LoRAConfig(rank=2, site="backbone"))
    save_adapter(policy, tmp_path / "adapted", str(tmp_path / "base"))
    flags = ["export", "--policy", str(tmp_path / "adapted"), "--merge"]
    assert main([*flags, "--output", str(tmp_path / "new")]) == 0
    page = (tmp_path / "new" / "README.md").read_text()
    assert "| action head | tokens, one of 9 bins for every number |" in page
    assert "in [-1, 1], differ from those before by 0e+00 at most" in page
    assert main([*flags, "--torch-export", "--output", str(tmp_path / "other")]) == 2
    assert "this policy's head 'tokens' is none; leave it out" in capsys.readouterr().err


def test_a_card_that_nobody_wrote_is_blamed(base, tmp_path, capsys):
    other = shutil.copytree(base, tmp_path / "other")
    record = json.loads((other / "policy.json").read_text())
    record["card"] = {"success_on_test_ids": {"red": 0.5}}
    (other / "policy.json").write_text(json.dumps(record))
    (other / "SHA256SUMS").unlink()
    assert main(["export", "--policy", str(other), "--output", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert "policy.json: its card is none that 'vla-crl pretrain' or 'export' writes" in said
    assert not (tmp_path / "new").exists()


def test_an_export_overwrites_nothing(tmp_path, capsys):
    assert main(["export", "--policy", "tiny", "--output", str(tmp_path)]) == 2
    assert "nothing was overwritten" in capsys.readouterr().err


def test_adapters_that_are_chosen_by_task_are_kept_apart_only(checkpoint, tmp_path, capsys):
    policy = load_policy(checkpoint)
    policy.adapters.route = TaskRoute(tasks={"red": {"default": 1.0}}, default={})
    save_policy(policy, tmp_path / "routed")
    source = str(tmp_path / "routed")
    assert main(["export", "--policy", source, "--output", str(tmp_path / "new")]) == 0
    assert load_policy(tmp_path / "new").adapters.record() == policy.adapters.record()
    assert "scale 1.5, chosen by task, are kept" in (tmp_path / "new/README.md").read_text()
    for flag, said in (
        ("--merge", f"policy '{source}': the policy's adapters default are chosen by task, so no"),
        ("--torch-export", f"'{source}': its adapters are chosen by task, which no program of"),
    ):
        assert main(["export", "--policy", source, flag, "--output", str(tmp_path / "x")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("is_routed", [False, True])
def test_the_example_on_the_page_acts_as_its_table_says(checkpoint, tmp_path, capsys, is_routed):
    policy = load_policy(checkpoint)
    if is_routed:  # by adapters for each task, of which that of the last task acts otherwise
        policy.adapters.add("last", LoRAConfig(rank=2))
        tasks = {"red": {"default": 1.0}, "green": {"last": 1.0}}
        policy.adapters.route = TaskRoute(tasks=tasks, default={})
        policy.adapters.activate({"last": 1.0})
    save_policy(policy, str(tmp_path / "source"))
    flags = ["--policy", str(tmp_path / "source"), "--output", str(tmp_path / "new")]
    assert main(["export", *flags]) == 0
    page = (tmp_path / "new" / "README.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {"observation": policy.example_observation()}
    exec(code.replace("THIS_FOLDER", str(tmp_path / "new")), found)
    with torch.no_grad(), policy.adapters.acting({"default": 1.0}):  # that of the task "red"
        context = policy.encode(found["observation"])
        expected = policy.act(context, deterministic=True).actions
    assert torch.equal(found["chunk"].actions, expected)
    assert ('with policy.adapters.routed("red"):' in code) == is_routed


def test_merged_weights_succeed_on_the_same_states(tmp_path):
    """The tiny policy with adapters, before and after they are merged."""
    policy, suite = load_policy("tiny"), load_suite("tabletop_30")
    add_lora(policy, LoRAConfig(rank=2))
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.01)
    sims = simulate_lanes(
        suite, 12, image_size=64, compute=ComputeConfig(), tasks=[suite.task_index(TASK)]
    )
    found = []
    try:
        for _ in range(2):
            results = evaluate(
                PolicyAgent(policy, deterministic=True), sims, [TASK], num_episodes=12
            )
            found.append(results[0].successes)
            if policy.adapters.names:
                merge_adapters(policy)
    finally:
        close_lanes(sims)
    assert found[0] == found[1] > 6
