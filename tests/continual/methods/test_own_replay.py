from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from vla_crl.continual.methods.own_replay import OwnChunk, OwnReplay, OwnReplayConfig
from vla_crl.testing.toy_learning import Features, ToyTrace
from vla_crl.testing.toy_stream import STD, ToyPolicy, ToyTraining


def training(folder: Path, num_tasks: int = 3, **settings) -> ToyTraining:
    method = OwnReplay(OwnReplayConfig(**settings))
    return ToyTraining(method, folder, num_tasks=num_tasks, num_iterations=8)


def run_stage(run: ToyTraining, number: int) -> None:
    run.begin(number)
    for _ in range(run.num_iterations):
        run.iterate()
    run.close()


def memory_of(run: ToyTraining) -> Any:
    method = run.method
    assert isinstance(method, OwnReplay)
    return method._memory


def test_only_successful_chunks_of_trained_tasks_are_kept(tmp_path: Path):
    run = training(tmp_path)
    run_stage(run, 1)
    memory = memory_of(run)
    assert memory.tasks == (0,)
    like = OwnChunk(Features(torch.zeros(1, 8)), ToyTrace(torch.zeros(1, 1, 2)))
    kept: Any = memory.draw(memory.num_chunks(0), [0], np.random.default_rng(0), like)
    distance = (kept.trace.sample[:, 0] - torch.tensor([1.0, 0.0])).norm(dim=1)
    assert distance.max() < 0.4  # what the toy calls a success
    nearest = (kept.seen.features @ run._centres.T).argmax(dim=1)
    assert nearest.tolist() == [0] * len(kept)


def test_tasks_to_come_and_the_present_one_are_never_replayed(tmp_path: Path, monkeypatch):
    run, drawn = training(tmp_path), []
    draw = memory_of(run).draw

    def remember(num, tasks, *others):
        drawn.append((run._number, [*tasks]))
        return draw(num, tasks, *others)

    monkeypatch.setattr(memory_of(run), "draw", remember)
    run.train()
    assert {stage for stage, _ in drawn} == {2, 3}
    assert all(tasks == [0] for stage, tasks in drawn if stage == 2)
    assert all(tasks == [0, 1] for stage, tasks in drawn if stage == 3)


def test_no_task_has_more_than_its_quota(tmp_path: Path):
    run = training(tmp_path, num_tasks=2, quota=50)
    run.train()
    assert [memory_of(run).num_chunks(task) for task in (0, 1)] == [50, 50]
    assert run.rows[-1]["num_kept"] == 100.0


def test_the_loss_is_how_unlikely_what_succeeded_has_become(tmp_path: Path):
    run = training(tmp_path, num_tasks=2, fraction=0.5, coefficient=2.0)
    run_stage(run, 1)
    assert "replay" not in run.rows[-1]
    run.begin(2)
    rollout = run._collect_fresh()
    run.method.before_update(run.policy, rollout)
    (batch,) = rollout.minibatches(128, torch.Generator().manual_seed(0))
    method: Any = run.method
    chunks, context = method._drawn
    rows = torch.randint(len(chunks), (64,), generator=torch.Generator().manual_seed(5))
    run._stage.generator.manual_seed(5)
    loss = method.losses(run.policy, batch, None)["replay"]
    normal = torch.distributions.Normal(run.policy.mean(context[rows]), STD)
    unlikely = -normal.log_prob(chunks.trace.sample[rows]).sum(dim=(1, 2))
    torch.testing.assert_close(loss, 2.0 * unlikely.mean())


def test_a_step_of_training_replays_its_fraction(tmp_path: Path):
    class Remembering(ToyPolicy):
        def evaluate_actions(self, context, trace, /):
            num_evaluated.append(len(context))
            return super().evaluate_actions(context, trace)

    num_evaluated: list[int] = []
    run = training(tmp_path, num_tasks=2, fraction=0.5)
    run.policy = Remembering()
    run_stage(run, 1)
    assert 32 not in num_evaluated
    run_stage(run, 2)
    assert 32 in num_evaluated  # half of minibatches of 64


def test_the_gradient_grows_with_the_coefficient(tmp_path: Path):
    ratios = []
    for coefficient in (0.01, 0.1):
        run = training(tmp_path / str(coefficient), coefficient=coefficient)
        run_stage(run, 1)
        run.begin(2)
        run.iterate()  # the value head alone
        run.iterate()
        ratios.append(run.rows[-1]["replay_grad_ratio"])
    assert ratios[1] == pytest.approx(10.0 * ratios[0], rel=1e-4)
    assert ratios[0] > 0.0


def test_without_a_fraction_nothing_is_replayed(tmp_path: Path):
    run = training(tmp_path, num_tasks=2, fraction=0.0)
    run.train()
    assert "replay" not in run.rows[-1]


def test_contexts_are_computed_anew_where_their_backbone_is_trained(tmp_path: Path, monkeypatch):
    run = training(tmp_path, num_tasks=2)
    run_stage(run, 1)
    run.begin(2)
    run.iterate()
    policy, batch = run.policy, run._collect_fresh()
    run.method.before_update(policy, batch)
    (minibatch,) = batch.minibatches(128, torch.Generator().manual_seed(0))
    policy.backbone.requires_grad_(True)
    encode, calls = policy.encode, []
    monkeypatch.setattr(policy, "encode", lambda seen: calls.append(len(seen)) or encode(seen))
    losses = run.method.losses(policy, minibatch, None)  # type: ignore[arg-type]
    assert calls == []
    losses["replay"].backward()
    assert policy.backbone.weight.grad is None
    fresh = replace(minibatch, context=policy.encode(cast(Features, minibatch.seen)))
    calls.clear()
    run.method.losses(policy, fresh, None)["replay"].backward()  # type: ignore[arg-type]
    assert calls == [32]
    assert policy.backbone.weight.grad is not None
