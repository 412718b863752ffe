"""The arithmetic of policy gradients beside that of libraries nobody here wrote."""

from types import SimpleNamespace
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vla_crl.algos.advantages import group_advantages
from vla_crl.algos.grpo import GRPO, GRPOConfig
from vla_crl.algos.gspo import GSPO, GSPOConfig
from vla_crl.algos.ppo import PPO, PPOConfig
from vla_crl.algos.protocols import Batch
from vla_crl.continual.method import ContinualMethod, NoSettings
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.testing.toy_learning import Features, GaussianToy, TokenToy, ToyTrace, play

NUM_STEPS, NUM_EPOCHS, RATE = 64, 5, 3e-3


class Wandering(gymnasium.Env[np.ndarray, np.ndarray]):
    """Random observations, episodes of random length, a reward for small actions."""

    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float32)

    def reset(self, **settings: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**settings)
        return self._see(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        ends = bool(self.np_random.random() < 0.2)
        return self._see(), -float(np.square(action).sum()), ends, False, {}

    def _see(self) -> np.ndarray:
        return self.np_random.standard_normal(3).astype(np.float32)


def theirs() -> Any:
    """PPO of stable-baselines3 with linear networks, after its collection and before its update."""
    import stable_baselines3

    model = stable_baselines3.PPO(
        "MlpPolicy", Wandering(), n_steps=NUM_STEPS, batch_size=NUM_STEPS, n_epochs=NUM_EPOCHS,
        learning_rate=RATE, gamma=0.9, gae_lambda=0.8, clip_range=0.1, ent_coef=0.01, vf_coef=0.7,
        normalize_advantage=False, max_grad_norm=1e9, seed=0, device="cpu",
        policy_kwargs={"net_arch": [], "optimizer_kwargs": {"eps": 1e-8}},
    )  # fmt: skip
    _, callback = model._setup_learn(NUM_STEPS)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, NUM_STEPS)
    return model


def ours_of(model: Any) -> tuple[GaussianToy, RolloutStorage]:
    """The same weights, and the same experience."""
    toy, policy, buffer = GaussianToy(), model.policy, model.rollout_buffer
    toy.linear.load_state_dict(policy.action_net.state_dict())
    toy.value_head.load_state_dict(policy.value_net.state_dict())
    toy.log_std.data[:] = policy.log_std.data
    columns = {name: torch.from_numpy(getattr(buffer, name)[:, 0].copy()) for name in (
        "observations", "actions", "log_probs", "values", "rewards", "episode_starts")}  # fmt: skip
    with torch.no_grad():
        last = policy.predict_values(torch.from_numpy(model._last_obs))[0]
    starts = torch.cat([columns["episode_starts"][1:], torch.tensor(model._last_episode_starts)])
    storage, none = None, torch.zeros(1, dtype=torch.int64)
    for t in range(NUM_STEPS):
        now = slice(t, t + 1)
        action = columns["actions"][now][:, None]
        seen, reward = Features(columns["observations"][now]), columns["rewards"][now]
        rows = Step(
            seen=None, context=seen, trace=ToyTrace(action), actions=action,
            log_probs=columns["log_probs"][now][:, None], values=columns["values"][now],
            reward=reward, terminated=starts[now].bool(), truncated=none > 0, success=none > 0,
            episode_return=reward, task=none, state_id=none, episode=none, group=none,
        )  # fmt: skip
        storage = storage or RolloutStorage(NUM_STEPS, 1, rows)
        storage.add(t, rows)
    assert storage is not None
    storage.finish(torch.cat([columns["values"][1:], last])[:, None])
    return toy, storage


def test_an_update_of_ppo_is_that_of_stable_baselines3():
    model = theirs()
    toy, rollout = ours_of(model)
    config = PPOConfig(
        learning_rate=RATE, value_learning_rate=RATE, gamma=0.9, gae_lambda=0.8, clip_low=0.1,
        clip_high=0.1, value_clip_range=None, num_epochs=NUM_EPOCHS, minibatch_size=NUM_STEPS,
        max_grad_norm=1e9, target_kl=None, vf_coef=0.7, entropy_coef=0.01,
        normalize_advantage=False, value_warmup_iterations=0,
    )  # fmt: skip
    start = toy.linear.weight.clone()
    model.train()
    method = ContinualMethod(NoSettings())
    PPO(toy, config).update(rollout, method, torch.Generator().manual_seed(0))
    buffer = model.rollout_buffer  # of which nothing but rounding may differ
    for name in ("advantages", "returns"):
        found, expected = getattr(rollout, name).flatten(), getattr(buffer, name).flatten()
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert (toy.linear.weight - start).abs().max() > 1e-3
    policy = model.policy
    pairs = [
        (toy.linear.weight, policy.action_net.weight), (toy.linear.bias, policy.action_net.bias),
        (toy.log_std, policy.log_std), (toy.value_head.weight, policy.value_net.weight),
        (toy.value_head.bias, policy.value_net.bias),
    ]  # fmt: skip
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def by_torchrl(rollout: RolloutStorage, size: int) -> dict[int, float]:
    """Advantage of each episode by torchrl, without groups whose returns are all equal."""
    from tensordict import TensorDict  # pyright: ignore[reportAttributeAccessIssue]
    from torchrl.objectives.llm import MCAdvantage

    engine = MCAdvantage(
        grpo_size=size, prompt_key="group", trajectory_return="sum", keep_return_bounds=(0.0, 1.0)
    )
    found: dict[int, float] = {}
    for slot in range(rollout.num_slots):
        length = int(rollout.valid[:, slot].sum())
        done = torch.zeros(length, 1, dtype=torch.bool)
        done[-1] = True
        reward = rollout.rewards[:length, slot, None]
        told = engine.inv(
            TensorDict(
                group=rollout.groups[:length, slot],
                episode=rollout.episodes[:length, slot],
                next=TensorDict(reward=reward, done=done, batch_size=[length]),
                batch_size=[length],
            )
        )
        if told is not None:
            pairs = zip(told["episode"].tolist(), told["advantage"][:, 0].tolist(), strict=True)
            found |= dict(pairs)
    return found


def test_advantages_of_groups_are_those_of_torchrl():
    rollout = play(GaussianToy(), torch.Generator().manual_seed(0), num_slots=64, group_size=8)
    found = group_advantages(
        rollout.episode_returns, rollout.groups, rollout.episodes, rollout.valid, scale=True
    )
    expected = by_torchrl(rollout, 8)
    assert 0 < len(expected) == 8 * found.num_useful < 64  # some groups were all alike
    for slot in range(64):
        where = found.counted[:, slot]
        assert where.equal(rollout.valid[:, slot] & (slot in expected))
        assert found.advantages[where, slot].tolist() == pytest.approx(
            [expected.get(slot, 0.0)] * int(where.sum()), abs=1e-5
        )


def torchrl_loss(log_prob: Tensor, batch: Batch, clip: tuple[float, float]) -> Tensor:
    """Loss of the parts of chunks by torchrl, whose tokens they are."""
    from tensordict import TensorDict  # pyright: ignore[reportAttributeAccessIssue]
    from torchrl.objectives.llm import GRPOLoss

    class OfLogProbs(GRPOLoss):
        """Is told the log-probabilities instead of computing them with a language model."""

        def _get_cur_log_prob(self, tensordict: Any) -> Any:
            everywhere = torch.ones_like(log_prob, dtype=torch.bool)
            return log_prob, SimpleNamespace(mask=everywhere), False

    tokens = torch.zeros_like(log_prob)
    told = OfLogProbs(None, clip_epsilon=clip, entropy_bonus=False)(
        TensorDict(
            {
                ("tokens", "full"): tokens,
                ("log_probs", "full"): batch.log_probs,
                "advantage": batch.advantages[:, None, None].expand(*tokens.shape, 1),
            },
            batch_size=[len(batch)],
        )
    )
    return cast(Any, told).loss_objective


def move(toy: nn.Module, distance: float) -> None:
    """Take a policy away from the one that collected, so that some ratios are clipped."""
    with torch.no_grad():
        for parameter in toy.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator())
            parameter.add_(distance * noise)


@pytest.mark.parametrize(("make_toy", "ratio"), [(GaussianToy, "chunk"), (TokenToy, "part")])
def test_loss_and_gradient_of_grpo_are_those_of_torchrl(make_toy: Any, ratio: Any):
    toy = make_toy()
    rollout = play(toy, torch.Generator().manual_seed(0), num_slots=64, group_size=8)
    learner = GRPO(toy, GRPOConfig(group_size=8, ratio=ratio))
    learner.prepare(rollout, torch.Generator())
    (batch,) = [*learner.minibatches(rollout, torch.Generator())]
    assert len(batch) < rollout.valid.sum()  # what tells nothing is in neither mean
    move(toy, 0.05 if ratio == "chunk" else 0.3)
    evaluation = toy.evaluate_actions(batch.context, batch.trace)
    terms = learner.terms(batch, evaluation)
    assert 0.1 < terms.metrics["clip_fraction"] < 0.9
    expected = torchrl_loss(evaluation.density.log_prob(), batch, (0.2, 0.28))
    torch.testing.assert_close(terms.policy_loss.mean(), expected, rtol=1e-5, atol=1e-6)
    weights = [p for p in toy.parameters() if p is not toy.value_head.weight][:2]
    found = torch.autograd.grad(terms.policy_loss.mean(), weights, retain_graph=True)
    for ours, others in zip(found, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-6)


def test_gspo_is_the_published_formula_in_loops():
    # Eq. 5 and 7 of arXiv 2507.18071 for each episode; parts of all its chunks are its tokens.
    toy = TokenToy()
    rollout = play(toy, torch.Generator().manual_seed(0), num_slots=32)
    learner = GSPO(toy, GSPOConfig(group_size=4, clip_low=0.05, clip_high=0.1))
    learner.prepare(rollout, torch.Generator())
    (batch,) = [*learner.minibatches(rollout, torch.Generator())]
    move(toy, 0.3)
    evaluation = toy.evaluate_actions(batch.context, batch.trace)
    log_prob, losses, num_clipped = evaluation.density.log_prob(), [], 0
    for episode in batch.episode.unique():
        rows = (batch.episode == episode).nonzero().flatten().tolist()
        gaps = [log_prob[row, part] - batch.log_probs[row, part] for row in rows for part in (0, 1)]
        ratio = torch.stack(gaps).mean().exp()
        advantage = float(batch.advantages[rows[0]])
        clipped = ratio.clamp(0.95, 1.1)
        num_clipped += int(bool(ratio != clipped))
        losses.append(-torch.minimum(ratio * advantage, clipped * advantage))
    expected = torch.stack(losses).mean()
    assert 0 < num_clipped < len(losses)
    found = learner.terms(batch, evaluation).policy_loss.mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = [toy.logits.weight]
    ours = torch.autograd.grad(found, weights, retain_graph=True)[0]
    torch.testing.assert_close(
        ours, torch.autograd.grad(expected, weights)[0], rtol=1e-4, atol=1e-6
    )
