import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.adapters import adapters_merged, add_lora, trainable_parameters
from vla_crl.models.lora import AdapterLayout, LoRAConfig
from vla_crl.models.routes import BankRecord, FixedRoute, RouterRoute, TaskRoute

LORA = LoRAConfig(rank=2, alpha=3)


def outputs(policy, observation):
    with torch.no_grad():
        chunk = policy.act(policy.encode(observation), deterministic=True)
    return chunk.actions


def randomize(policy, name, std=0.3):
    for _, up in policy.adapters.matrices(name).values():
        torch.nn.init.normal_(up, std=std)


def add(policy, *names, config=LORA):
    for name in names:
        policy.adapters.add(name, config, trained=False)
        randomize(policy, name)


def train_a_little(policy, observation):
    """Take a few steps on what is trainable."""
    trained = [p for group in trainable_parameters(policy).values() for p in group]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    context = policy.encode(observation).detach()
    chunk = policy.act(context, deterministic=False, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        found = policy.evaluate_actions(context, chunk.trace)
        optimizer.zero_grad()
        (found.density.log_prob().sum() + found.value.sum()).backward()
        optimizer.step()


def update_of(policy, name, layer):
    """Return c B A of one layer."""
    down, up = policy.adapters.matrices(name)[layer]
    return policy.adapters.layouts[name].scale * up.double() @ down.double()


def test_a_policy_begins_without_adapters(policy):
    bank = policy.adapters
    assert (bank.names, bank.scales, bank.norms()) == ((), {}, {})
    assert bank.record() == BankRecord()
    assert isinstance(bank.route, FixedRoute)
    assert not any(name.startswith("adapters") for name in policy.state_dict())


def test_one_adapter_a_task_forgets_exactly_nothing(policy, observation):
    bank = policy.adapters
    policy.requires_grad_(False)
    before = []
    for task in ("first", "second"):
        bank.add(task, LORA)
        bank.activate({task: 1.0}, train=(task,))
        train_a_little(policy, observation)
        bank.route = TaskRoute(tasks={name: {name: 1.0} for name in bank.names})
        with bank.routed("first"):
            before.append(outputs(policy, observation))
    assert torch.equal(*before)
    with bank.routed("second"):
        assert not torch.equal(outputs(policy, observation), before[0])


def test_adapters_that_act_together_add_up(policy, observation):
    add(policy, "a", "b")
    bank = policy.adapters
    base = outputs(policy, observation)
    bank.activate({"a": 1.0, "b": -0.5})
    together = outputs(policy, observation)
    layer = next(iter(bank.layouts["a"].ranks))
    expected = update_of(policy, "a", layer) - 0.5 * update_of(policy, "b", layer)
    adapted = policy.get_submodule(layer)
    found = adapted.merged_weight().double() - adapted.weight.double()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)
    bank.merge(("a", "b"), "sum", {"b": -0.5})
    bank.activate({"sum": 1.0})
    torch.testing.assert_close(outputs(policy, observation), together, rtol=0.0, atol=1e-5)
    bank.activate({})
    assert torch.equal(outputs(policy, observation), base)


def test_a_merged_update_is_exactly_the_weighted_sum_of_updates(policy):
    add(policy, "a")
    add(policy, "b", config=LoRAConfig(rank=3, alpha=4, site="both"))
    policy.adapters.merge(("a", "b"), "sum", {"a": 0.5, "b": 2.0})
    layout = policy.adapters.layouts["sum"]
    shared = set(policy.adapters.layouts["a"].ranks)
    for layer, rank in layout.ranks.items():
        parts = [0.5 * update_of(policy, "a", layer)] if layer in shared else []
        parts.append(2.0 * update_of(policy, "b", layer))
        assert rank == 3 + 2 * (layer in shared)
        found = update_of(policy, "sum", layer)
        torch.testing.assert_close(found, sum(parts), rtol=1e-6, atol=1e-7)


def test_merging_alone_with_one_is_a_copy_and_with_zero_the_base(policy, observation):
    add(policy, "a")
    bank = policy.adapters
    base = outputs(policy, observation)
    with bank.acting({"a": 1.0}):
        own = outputs(policy, observation)
    bank.merge(("a",), "copy")
    bank.merge(("a",), "nothing", {"a": 0.0})
    with bank.acting({"copy": 1.0}):
        assert torch.equal(outputs(policy, observation), own)
    with bank.acting({"nothing": 1.0}):
        assert torch.equal(outputs(policy, observation), base)
    assert bank.norms()["nothing"] == 0.0


def test_an_adapter_trained_at_one_can_be_deployed_at_less(policy, observation):
    # RETAIN: W + c dW after W + dW was trained; c = 0.5 is half of the update.
    add(policy, "a")
    bank = policy.adapters
    bank.activate({"a": 0.5})
    deployed = outputs(policy, observation)
    bank.merge(("a",), "a", {"a": 0.5})  # in its own place
    bank.activate({"a": 1.0})
    torch.testing.assert_close(outputs(policy, observation), deployed, rtol=0.0, atol=1e-6)


def test_the_norm_of_an_update_is_that_of_the_product(policy):
    add(policy, "a")
    parts = [update_of(policy, "a", layer) for layer in policy.adapters.layouts["a"].ranks]
    expected = torch.cat([part.flatten() for part in parts]).norm().item()
    assert policy.adapters.norms()["a"] == pytest.approx(expected, rel=1e-6)


def test_a_snapshot_stays_as_the_policy_was(policy, observation):
    add_lora(policy, LORA)
    randomize(policy, "default")
    bank = policy.adapters
    before = outputs(policy, observation)
    bank.snapshot("teacher")
    train_a_little(policy, observation)
    student = outputs(policy, observation)
    assert not torch.equal(student, before)
    with bank.acting({"teacher": 1.0}):
        assert torch.equal(outputs(policy, observation), before)
    assert torch.equal(outputs(policy, observation), student)
    assert not any(m.requires_grad for pair in bank.matrices("teacher").values() for m in pair)
    bank.snapshot("teacher")  # anew
    with bank.acting({"teacher": 1.0}):
        assert torch.equal(outputs(policy, observation), student)


def test_a_snapshot_of_several_is_their_sum(policy, observation):
    add(policy, "a", "b")
    policy.adapters.activate({"a": 1.0, "b": 0.5})
    before = outputs(policy, observation)
    policy.adapters.snapshot("sum")
    with policy.adapters.acting({"sum": 1.0}):
        torch.testing.assert_close(outputs(policy, observation), before, rtol=0.0, atol=1e-5)


def test_a_teacher_takes_no_second_copy_of_the_model(policy, observation):
    add_lora(policy, LORA)
    randomize(policy, "default")
    size = {name: t.data_ptr() for name, t in policy.state_dict().items()}
    policy.adapters.snapshot("teacher")
    added = {n: t for n, t in policy.state_dict().items() if n not in size}
    assert all(".teacher." in name for name in added)
    trained = sum(p.numel() for n, p in policy.named_parameters() if ".default." in n)
    assert sum(tensor.numel() for tensor in added.values()) == trained
    with policy.adapters.acting({"teacher": 1.0}):
        acts = {name: tensor.data_ptr() for name, tensor in policy.state_dict().items()}
    assert {name: acts[name] for name in size} == size


def test_what_acts_and_what_is_trained_is_restored_even_after_an_error(policy, observation):
    add_lora(policy, LORA)
    randomize(policy, "default")
    add(policy, "other")
    before = {name: p.requires_grad for name, p in policy.named_parameters()}
    expected = outputs(policy, observation)

    def fail():
        with policy.adapters.acting({"other": 1.0}):
            with policy.adapters.acting({}):
                assert policy.adapters.scales == {}
            assert policy.adapters.scales == {"other": 1.0}
            assert before == {name: p.requires_grad for name, p in policy.named_parameters()}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert policy.adapters.scales == {"default": 1.0}
    assert torch.equal(outputs(policy, observation), expected)
    assert before == {name: p.requires_grad for name, p in policy.named_parameters()}


def test_a_reference_inside_an_update_leaves_the_gradient_as_it_is(policy, observation):
    add_lora(policy, LORA)
    randomize(policy, "default")
    context = policy.encode(observation).detach()
    chunk = policy.act(context, deterministic=False)
    trained = [p for n, p in policy.named_parameters() if ".lora_" in n]
    gradients = []
    for with_reference in (False, True):
        density = policy.evaluate_actions(context, chunk.trace).density
        if with_reference:
            with torch.no_grad(), policy.adapters.acting({}):
                reference = policy.evaluate_actions(context, chunk.trace).density
            assert density.kl(reference).min() > 0
        gradients.append(torch.autograd.grad(density.log_prob().sum(), trained))
    assert all(map(torch.equal, *gradients))


def test_what_is_trained_is_chosen_by_name(policy):
    add(policy, "a", "b")
    policy.adapters.activate({"a": 1.0, "b": 1.0}, train=("b",))
    for name, is_trained in (("a", False), ("b", True)):
        for pair in policy.adapters.matrices(name).values():
            assert all(matrix.requires_grad == is_trained for matrix in pair)
    policy.adapters.activate({"b": 1.0})  # says nothing of training
    assert all(m.requires_grad for pair in policy.adapters.matrices("b").values() for m in pair)


def test_an_adapter_that_is_removed_leaves_the_layers_as_they_were(policy, make_policy):
    add(policy, "a", "b")
    policy.adapters.activate({"a": 1.0})
    policy.adapters.remove("a")
    assert policy.adapters.names == ("b",)
    assert policy.adapters.scales == {}
    policy.adapters.remove("b")
    assert [type(module) for module in policy.modules()] == [
        type(module) for module in make_policy().modules()
    ]
    assert policy.state_dict().keys() == make_policy().state_dict().keys()


def test_an_adapter_can_be_like_another(policy):
    add(policy, "a")
    policy.adapters.add("b", policy.adapters.layouts["a"])
    assert policy.adapters.layouts["a"] == policy.adapters.layouts["b"]


def test_tasks_without_a_route_of_their_own_have_the_default_or_are_an_error(policy):
    add(policy, "a", "b")
    bank = policy.adapters
    bank.route = TaskRoute(tasks={"one": {"a": 1.0}})
    assert bank.route_of("one") == {"a": 1.0}
    message = "chosen by task, and for 'two' none is; expected one of one. Choose among these, or"
    with pytest.raises(ConfigError, match=message):
        bank.route_of("two")
    bank.route = TaskRoute(tasks={"one": {"a": 1.0}}, default={})
    assert bank.route_of("two") == {}
    bank.route = TaskRoute(tasks={"one": {"a": 1.0}}, default={"b": 0.5})
    with bank.routed("two"):
        assert bank.scales == {"b": 0.5}
    bank.route = FixedRoute()
    bank.activate({"b": 2.0})
    with bank.routed("two"):
        assert bank.scales == {"b": 2.0}


def test_lanes_act_at_once_as_one_after_the_other(policy, observation):
    add(policy, "a", "b")
    policy.adapters.activate({"a": 1.0, "b": 0.5})
    expected = outputs(policy, observation)
    for block in (nullcontext(), adapters_merged(policy)):
        with block, ThreadPoolExecutor(2) as threads:
            futures = [threads.submit(outputs, policy, observation) for _ in range(8)]
            assert all(torch.equal(future.result(), expected) for future in futures)


def test_a_copy_of_a_policy_has_adapters_of_its_own(policy, observation):
    add(policy, "a")
    policy.adapters.route = RouterRoute(router="linear", names=("a",))
    before = outputs(policy, observation)
    twin = copy.deepcopy(policy)
    assert twin.state_dict().keys() == policy.state_dict().keys()
    twin.adapters.route = FixedRoute()
    twin.adapters.remove("a")
    assert torch.equal(outputs(policy, observation), before)
    assert not torch.equal(outputs(twin, observation), before)


def test_a_policy_that_nobody_holds_is_let_go_of(make_policy):
    policy = make_policy()
    add(policy, "a")
    gone = weakref.ref(policy)
    del policy
    gc.collect()
    assert gone() is None


def test_a_bank_becomes_as_a_record_says(make_policy, observation):
    source, target = make_policy(), make_policy()
    add(source, "a")
    add(source, "b", config=LoRAConfig(rank=3, site="both"))
    source.adapters.activate({"a": 0.5})
    source.adapters.route = TaskRoute(tasks={"one": {"b": 1.0}}, default={})
    add(target, "b", "c")
    target.adapters.route = TaskRoute(tasks={"two": {"c": 1.0}})
    target.adapters.arrange(source.adapters.record())
    assert target.adapters.record() == source.adapters.record()
    target.load_state_dict(source.state_dict())
    for task in ("one", "two"):
        with source.adapters.routed(task), target.adapters.routed(task):
            assert torch.equal(outputs(source, observation), outputs(target, observation))
    assert torch.equal(outputs(source, observation), outputs(target, observation))
    assert all(m.requires_grad for pair in target.adapters.matrices("a").values() for m in pair)
    assert not any(m.requires_grad for p in target.adapters.matrices("b").values() for m in p)


def in_a_block(bank):
    with bank.acting({"a": 1.0}):
        bank.remove("a")


def gated_snapshot(bank):
    bank.route = RouterRoute(router="linear", names=("a", "b"))
    bank.snapshot("c")


def merge_into_gated(bank):
    bank.route = RouterRoute(router="linear", names=("a", "b"))
    bank.merge(("a", "b"), "a")


def acting_snapshot(bank):
    bank.activate({"a": 1.0})
    bank.snapshot("a")


def remove_routed(bank):
    bank.route = TaskRoute(tasks={"one": {"a": 1.0}})
    bank.remove("a")


LAYOUT = AdapterLayout(scale=1.0, ranks={"head.expert.layers.0.q_prj": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.add("a b", LORA), "adapter 'a b': expected a name of letters, digits"),
        (lambda b: b.add("keys", LORA), "adapter 'keys': expected a name .* attribute of torch"),
        (lambda b: b.add("a", LORA), "adapter 'a': there is one of that name, of rank 2 in 18"),
        (lambda b: b.add("c", LAYOUT), "adapter 'c': unknown layer '.*q_prj'. Did you mean '.*q_p"),
        (lambda b: b.remove("c"), "adapters: remove: unknown adapter 'c'.*Known: a, b."),
        (lambda b: b.activate({"c": 1.0}), "adapters: activate: unknown adapter 'c'"),
        (lambda b: b.activate({"a": float("nan")}), "activate: scale of 'a' is nan, expected"),
        (lambda b: b.activate({"a": 1.0}, train=("b",)), "'b' is to be trained but does not act"),
        (lambda b: b.train_only(("c",)), "adapters: train_only: unknown adapter 'c'"),
        (lambda b: b.acting({"c": 1.0}).__enter__(), "adapters: acting: unknown adapter 'c'"),
        (lambda b: b.matrices("c"), "adapters: matrices: unknown adapter 'c'"),
        (lambda b: setattr(b, "route", TaskRoute(tasks={"t": {"c": 1.0}})), "route: unknown ada"),
        (remove_routed, "adapter 'a': the route by task needs it; set another route before"),
        (in_a_block, "adapter 'a': acts in a block of acting; remove it behind it"),
        (lambda b: b.merge((), "c"), r"merge: names are \[\], expected at least one, each once"),
        (lambda b: b.merge(("a", "a"), "c"), r"merge: names are \['a', 'a'\], expected"),
        (lambda b: b.merge(("c",), "d"), "adapters: merge: unknown adapter 'c'"),
        (lambda b: b.merge(("a",), "d", {"b": 1.0}), "merge: unknown weight 'b'"),
        (lambda b: b.merge(("a",), "d", {"a": float("inf")}), "merge: scale of 'a' is inf"),
        (merge_into_gated, "merge: 'a' is weighed by the router, and of another layout"),
        (lambda b: b.snapshot("c"), r"snapshot 'c': no adapter acts, .* use acting\(\{\}\)"),
        (acting_snapshot, "snapshot 'a': that adapter acts; choose another name"),
        (gated_snapshot, "snapshot 'c': a router weighs the adapters a, b anew for every input"),
    ],
)
def test_what_cannot_be_is_told(policy, change, message):
    add(policy, "a", "b")
    before = policy.adapters.layouts
    with pytest.raises(ConfigError, match=message):
        change(policy.adapters)
    assert policy.adapters.layouts == before
