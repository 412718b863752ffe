"""Policies that a learner or a method looks at: what each says about a batch."""

import dataclasses
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from vla_crl.algos.learner import policy_parameters
from vla_crl.algos.protocols import Batch, Reference
from vla_crl.compute import ComputeConfig
from vla_crl.continual.reference import make_reference
from vla_crl.errors import ConfigError
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, save_adapter, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.merging import merge_adapters
from vla_crl.models.routes import TaskRoute
from vla_crl.models.stage_checkpoint import restore, save_checkpoint
from vla_crl.rollout.contexts import Contexts
from vla_crl.testing import fake_suite

TASKS = {0: "reach_red", 1: "reach_blue"}


@pytest.fixture
def make_adapted(make_small_policy):
    """Return a function that builds a policy with adapters that do something."""

    def make(suite=None, **settings: Any):
        policy = make_small_policy(
            suite or fake_suite(train=["red", "blue"], heldout=[]), **settings
        )
        add_lora(policy, LoRAConfig(rank=2))
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator())
        return policy

    return make


def seen_by(policy, num_rows: int = 1) -> Batch:
    """A batch of what a policy has done in two tasks by turns, as far as references look at it."""
    rows = [0] * num_rows
    with torch.no_grad():
        context = policy.encode(policy.example_observation())[rows]
        chunk = policy.act(context, deterministic=False, generator=torch.Generator())
    seen, none = policy.tokenize(policy.example_observation())[rows], chunk.value
    return Batch(
        index=none, seen=seen, context=context, trace=chunk.trace, actions=chunk.actions,
        log_probs=chunk.log_prob, values=none, advantages=none, returns=none, reward=none,
        task=torch.arange(num_rows) % 2, state_id=none, episode=none, group=none,
        episode_return=none, success=none,
    )  # fmt: skip


def refer(which: object, policy, contexts: Contexts = "stored") -> Reference:
    return make_reference(str(which), policy, ComputeConfig(), contexts, tasks=TASKS)


def density_of(policy, batch: Batch):
    return policy.evaluate_actions(batch.context, batch.trace).density


def test_the_policy_of_the_previous_task_stays_as_it_was_and_the_graph_whole(make_adapted):
    policy = make_adapted()
    batch = seen_by(policy)
    reference = refer("previous_task", policy)
    before = density_of(policy, batch).detach()
    with torch.no_grad():
        for parameter in policy_parameters(policy).values():
            parameter.add_(0.1)
    now = density_of(policy, batch)
    alone = torch.autograd.grad(now.log_prob().sum(), [*policy_parameters(policy).values()])
    now = density_of(policy, batch)
    torch.testing.assert_close(reference(batch).log_prob(), before.log_prob())
    assert not torch.allclose(now.log_prob(), before.log_prob())
    after = torch.autograd.grad(now.log_prob().sum(), [*policy_parameters(policy).values()])
    for one, other in zip(alone, after, strict=True):
        assert torch.equal(one, other)
    assert not reference(batch).log_prob().requires_grad


def test_the_base_is_the_policy_without_adapters(make_adapted, make_small_policy):
    policy = make_adapted()
    batch = seen_by(policy)
    reference = refer("base", policy)
    plain = make_small_policy(fake_suite(train=["red", "blue"], heldout=[]))
    expected = density_of(plain, batch).log_prob()
    torch.testing.assert_close(reference(batch).log_prob(), expected)
    assert not torch.allclose(density_of(policy, batch).log_prob(), expected)


def test_a_policy_without_adapters_has_no_base_to_refer_to(make_small_policy):
    policy = make_small_policy(fake_suite(train=["red", "blue"], heldout=[]))
    with pytest.raises(ConfigError, match="learner.teacher is 'base', .* but it has none; name"):
        make_reference(
            "base", policy, ComputeConfig(), "stored", tasks=TASKS, setting="learner.teacher"
        )


def test_a_checkpoint_teaches_by_stored_contexts_where_it_sees_with_the_same_backbone(
    make_adapted, make_small_policy, tmp_path
):
    policy = make_adapted()
    batch = seen_by(policy)
    teacher = make_small_policy(fake_suite(train=["red", "blue"], heldout=[]))
    with torch.no_grad():
        for parameter in teacher.head.parameters():
            parameter.mul_(1.1)
    save_policy(teacher, tmp_path / "teacher")
    policy.explore({"noise_level": 0.3})
    reference = refer(tmp_path / "teacher", policy)
    teacher.explore({"noise_level": 0.3})  # a teacher judges as the student explores
    expected = density_of(teacher, batch).log_prob()
    torch.testing.assert_close(reference(batch).log_prob(), expected)
    with torch.no_grad():
        teacher.state_in.bias.add_(1.0)
    save_policy(teacher, tmp_path / "other")
    which = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="other' of the learner: has another backbone"):
        refer(which, policy)
    found = refer(which, policy, "every_epoch")(batch)
    with torch.no_grad():
        expected = teacher.evaluate_actions(
            teacher.encode(batch.seen), batch.trace
        ).density.log_prob()
    torch.testing.assert_close(found.log_prob(), expected)


def test_a_teacher_of_another_body_head_or_sight_is_refused(
    make_adapted, make_small_policy, tmp_path
):
    policy, suite = make_adapted(), fake_suite(train=["red", "blue"], heldout=[])
    robot = dataclasses.replace(suite.embodiment, action=("delta_x", "delta_y", "claw"))
    body = fake_suite(train=["red", "blue"], heldout=[], embodiment=robot)
    cases = {"body": make_small_policy(body), "sight": make_small_policy(suite, image_size=64)}
    cases["scale"] = make_small_policy(suite)
    cases["scale"].norm_stats.action_std.fill_(2.0)
    cases["steps"] = make_small_policy(suite)
    head = dataclasses.replace(cases["steps"].config.head, num_steps=7)
    cases["steps"].config = dataclasses.replace(cases["steps"].config, head=head)
    messages = {
        "body": "reference .*body' of the learner.*'claw'",
        "sight": "its image_size is 64, that of the policy 32; it would not see",
        "scale": "its norm_stats.action_std is another than the policy's",
        "steps": r"its head is 'flow' in 7 steps \(.*\), that of the policy 'flow' in 4 steps",
    }
    for name, teacher in cases.items():
        save_policy(teacher, tmp_path / name)
        with pytest.raises(ConfigError, match=messages[name]):
            refer(tmp_path / name, policy)


@pytest.mark.parametrize("site", ["head", "both"])
def test_a_teacher_acts_in_each_task_as_its_route_says(
    make_adapted, make_small_policy, tmp_path, site
):
    policy = make_adapted(insulation="none")
    teacher = make_small_policy(fake_suite(train=["red", "blue"], heldout=[]), insulation="none")
    for name in ("red", "blue"):
        teacher.adapters.add(name, LoRAConfig(rank=2, site=site))
        for _, up in teacher.adapters.matrices(name).values():
            torch.nn.init.normal_(up, std=0.3)
    bank = teacher.adapters
    bank.route = TaskRoute(tasks={"reach_red": {"red": 1.0}, "reach_blue": {"blue": 1.0}})
    bank.activate({"blue": 1.0})
    save_policy(teacher, tmp_path / "teacher")
    batch = seen_by(policy, 5)
    seen = policy.tokenize(policy.example_observation())
    if site == "both":
        with pytest.raises(ConfigError, match="has another backbone"):
            refer(tmp_path / "teacher", policy)
    contexts: Contexts = "stored" if site == "head" else "every_epoch"
    found = refer(tmp_path / "teacher", policy, contexts)(batch)
    for row, name in enumerate(["red", "blue", "red", "blue", "red"]):
        with torch.no_grad(), bank.acting({name: 1.0}):
            context = teacher.encode(seen)
            alone = teacher.evaluate_actions(context, batch.trace[[row]]).density
        torch.testing.assert_close(found[[row]].log_prob(), alone.log_prob())
    with torch.no_grad(), bank.acting({"blue": 1.0}):
        last = teacher.evaluate_actions(teacher.encode(batch.seen), batch.trace).density
    gaps = (found.log_prob() - last.log_prob()).abs()[:, 0] > 1e-3
    assert gaps.tolist() == [True, False, True, False, True]


def test_a_teacher_that_knows_not_what_to_do_in_a_task_is_told(make_adapted, tmp_path):
    policy, teacher = make_adapted(), make_adapted()
    teacher.adapters.route = TaskRoute(tasks={"reach_red": {"default": 1.0}})
    save_policy(teacher, tmp_path / "teacher")
    with pytest.raises(
        ConfigError, match="teacher' of the learner: .* chosen by task, and for 'reach_blue' none"
    ):
        refer(tmp_path / "teacher", policy)


def explores_more(policy) -> None:
    """Change what the head has learnt to explore with."""
    starts = tuple(f"head.{name}" for name in policy.head.exploration_parameters)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.startswith(starts):
                parameter.add_(0.3)


@pytest.mark.parametrize("kind", ["gaussian", "noise"])
def test_base_and_previous_task_explore_as_they_did(make_adapted, make_small_head, kind):
    policy = make_adapted(head=make_small_head(kind))
    batch = seen_by(policy)
    with torch.no_grad(), policy.adapters.acting({}):
        base = density_of(policy, batch)
    with torch.no_grad():
        before = density_of(policy, batch)
    references = {which: refer(which, policy) for which in ("base", "previous_task")}
    explores_more(policy)
    with torch.no_grad(), policy.adapters.acting({}):
        assert density_of(policy, batch).kl(base).item() > 0.1
    for which, expected in (("base", base), ("previous_task", before)):
        torch.testing.assert_close(
            references[which](batch).parameters, expected.parameters, rtol=0, atol=0
        )
    assert not density_of(policy, batch).parameters["std"].equal(before.parameters["std"])


def test_a_base_explores_as_it_did_however_the_policy_is_loaded(
    make_small_policy, make_small_head, tmp_path
):
    """Hand-derived: exp(0.3) times the base's deviation is that of the trained policy."""
    suite = fake_suite(train=["red", "blue"], heldout=[])
    base = make_small_policy(suite, head=make_small_head("gaussian"))
    explores_more(base)  # pretrained: exp(0.3)
    save_policy(base, tmp_path / "base")
    policy = load_policy(tmp_path / "base")
    add_lora(policy, LoRAConfig(rank=2))
    explores_more(policy)
    save_adapter(policy, tmp_path / "stage", str(tmp_path / "base"))
    save_policy(policy, tmp_path / "whole")
    policy.get_parameter("state_in.bias").data.add_(1.0)
    save_checkpoint(policy, tmp_path / "trained", str(tmp_path / "base"))
    fresh = load_policy(tmp_path / "base")
    add_lora(fresh, LoRAConfig(rank=2))
    restore(fresh, tmp_path / "stage")
    begun = load_policy(tmp_path / "base")
    add_lora(begun, LoRAConfig(rank=2))
    restore(begun, tmp_path / "trained")
    loaded = [load_policy(tmp_path / name) for name in ("stage", "whole", "trained")]
    for one in (policy, fresh, begun, *loaded):
        one.adapters.add("second", LoRAConfig(rank=2))
        one.adapters.remove("default")
        deviations = []
        for block in (nullcontext(), one.adapters.as_base()):
            with block, torch.no_grad():
                deviations.append(density_of(one, seen_by(one)).parameters["std"].unique().item())
        assert deviations == pytest.approx([0.3 * math.exp(0.6), 0.3 * math.exp(0.3)])


def test_a_merged_policy_is_a_base_of_its_own(make_adapted, make_small_head):
    policy = make_adapted(head=make_small_head("gaussian"))
    explores_more(policy)
    assert policy.adapters.base_exploration.weights["head.log_factor"].unique().item() == 0.0
    merge_adapters(policy)
    assert policy.adapters.base_exploration.weights == {}
    add_lora(policy, LoRAConfig(rank=2))
    kept = policy.adapters.base_exploration.weights["head.log_factor"]
    assert kept.unique().item() == pytest.approx(0.3)
