from pathlib import Path

import numpy as np
import pytest
import torch

from vla_crl.continual.known_methods import make_method
from vla_crl.continual.methods.task_adapters import TaskAdapters, TaskAdaptersConfig
from vla_crl.errors import ConfigError
from vla_crl.models.routes import TaskRoute
from vla_crl.testing.toy_stream import ToyTraining


def training(folder: Path, *, rank: int | None = 4, **settings) -> ToyTraining:
    return ToyTraining(TaskAdapters(TaskAdaptersConfig(**settings)), folder, rank=rank)


def test_nothing_is_forgotten_and_every_task_is_learnt(tmp_path: Path):
    rates = training(tmp_path).train()
    for task in range(3):
        assert rates[task + 1, task] > 0.9
        assert (rates[task + 1 :, task] == rates[task + 1, task]).all()  # exactly
        assert (rates[: task + 1, task] == rates[0, task]).all()  # no transfer either
    sequential = ToyTraining(make_method("sequential", {}), tmp_path, rank=4).train()
    assert sequential[-1, 0] < 0.1


def test_outputs_of_a_task_are_bit_for_bit_those_of_its_own_stage(tmp_path: Path):
    run = training(tmp_path)
    run.begin(1)
    for _ in range(4):
        run.iterate()
    run.close()
    context = run.policy.encode(run._see(torch.zeros(8, dtype=torch.int64)))
    with run.policy.adapters.routed("reach_red"), torch.no_grad():
        before = run.policy.mean(context)
    run.begin(2)
    for _ in range(4):
        run.iterate()
    run.close()
    with run.policy.adapters.routed("reach_red"), torch.no_grad():
        assert torch.equal(run.policy.mean(context), before)
    with run.policy.adapters.routed("reach_green"), torch.no_grad():
        assert not torch.equal(run.policy.mean(context), before)


def test_only_the_adapter_of_the_task_is_trained_and_the_first_one_is_gone(tmp_path: Path):
    run = training(tmp_path)
    run.train()
    bank = run.policy.adapters
    assert bank.names == ("task_0", "task_1", "task_2")
    trained = [name for name, p in run.policy.named_parameters() if p.requires_grad]
    assert {name.split(".")[3] for name in trained if ".lora_" in name} == {"task_2"}
    assert bank.route == TaskRoute(
        tasks={f"reach_{c}": {f"task_{i}": 1.0} for i, c in enumerate(("red", "green", "blue"))},
        default={},
    )


@pytest.mark.parametrize(("unseen", "acts"), [("base", {}), ("last", {"task_0": 1.0})])
def test_what_acts_in_tasks_that_were_not_trained_can_be_chosen(tmp_path: Path, unseen, acts):
    run = training(tmp_path, unseen=unseen)
    run.begin(1)
    assert run.policy.adapters.route_of("reach_blue") == acts


def test_an_adapter_that_the_policy_brings_goes_on_acting(tmp_path: Path):
    run = training(tmp_path)
    for _, up in run.policy.adapters.matrices("default").values():
        torch.nn.init.normal_(up)
    run.begin(1)
    assert run.policy.adapters.route_of("reach_red") == {"default": 1.0, "task_0": 1.0}
    assert run.policy.adapters.route_of("reach_green") == {"default": 1.0}
    run.begin(2)
    assert run.policy.adapters.route_of("reach_green") == {"default": 1.0, "task_1": 1.0}
    for matrix in run.policy.adapters.matrices("default")["head.0"]:
        assert not matrix.requires_grad


def test_a_task_that_comes_again_goes_on_with_its_adapter(tmp_path: Path):
    run = training(tmp_path)
    for number in (1, 2, 1):
        run.begin(number)
        run.iterate()
        run.iterate()
        run.close()
    assert run.policy.adapters.names == ("task_0", "task_1")
    assert run.policy.adapters.scales == {"task_0": 1.0}


def test_all_tasks_at_once_share_an_adapter(tmp_path: Path):
    both = make_method("multitask+task_adapters", {})
    run = ToyTraining(both, tmp_path, rank=4)
    rates = run.train()
    assert run.policy.adapters.names == ("task_0_1_2",)
    assert np.isnan(rates[1:3]).all()


def test_a_policy_without_adapters_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="'task_adapters': the policy has no adapters, .* lora"):
        training(tmp_path, rank=None)
