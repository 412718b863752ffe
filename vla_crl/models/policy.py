"""The VLA policy: backbone, action expert, token heads and value head behind one contract."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_crl.compute import Dtype
from vla_crl.config import ImageSize, Settings, Size
from vla_crl.contracts import Embodiment, Observation
from vla_crl.density import Density, Evaluation
from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.models.action_expert import ActionExpert, ActionExpertConfig, Memory
from vla_crl.models.adapter_bank import AdapterBank
from vla_crl.models.backbone import TORCH_DTYPE, Backbone
from vla_crl.models.context import (
    Context,
    Insulation,
    TokenizedObservation,
)
from vla_crl.models.heads import flow
from vla_crl.models.heads.flow import FlowConfig, FlowDraws, FlowTrace, StochasticStep
from vla_crl.models.lora import BaseWeights
from vla_crl.models.normalization import NormStats
from vla_crl.models.pretrained_vlm import PretrainedBackboneConfig, load_vlm
from vla_crl.models.token_heads import (
    LOSS_TERMS,
    QUERY_TERMS,
    GroundingHeads,
    SupervisedBatch,
    TokenHeads,
)
from vla_crl.models.tokenizer import WordTokenizer, check_vocabulary
from vla_crl.models.value import ValueHead
from vla_crl.models.vlm import BackboneConfig, VisionLanguageModel, build_smolvlm
from vla_crl.rows import Rows


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Settings):
    """Everything needed to build a policy with random weights."""

    embodiment: Embodiment | None = None
    """Channels of the robot. None in a preset: those of the suite that it is pretrained on."""
    image_size: ImageSize = 64
    """Height and width of an observed image in pixels; a pretrained backbone resizes it."""
    vocabulary: tuple[str, ...] = ()
    """Words the tokenizer knows, lower case; their order is fixed with the weights. A pretrained
    backbone brings a tokenizer of its own."""
    max_words: Size = 12
    """Longest instruction in words (of a pretrained tokenizer: in tokens); every instruction takes
    this many prefix tokens."""
    backbone: BackboneConfig | PretrainedBackboneConfig = field(default_factory=BackboneConfig)
    """Vision-language model: sizes of one with random weights, or the source of another."""
    action_expert: ActionExpertConfig = field(default_factory=ActionExpertConfig)
    """Action expert."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Flow matching."""
    insulation: Insulation = "full"
    """Gradient from the action expert to the backbone: stopped, passed on, or scaled by (0, 1)."""
    action_horizon: Size = 8
    """Actions predicted per chunk."""
    execution_horizon: Size = 4
    """Leading actions that are executed and count in the log-probability."""
    num_action_bins: Size = 32
    """Bins of [-1, 1] for a discrete action number."""
    num_position_bins: Size = 32
    """Bins of the image edge in answers."""
    things: tuple[str, ...] = ()
    """Names of what the grounding heads find in a scene. None in a preset: those of the suite."""
    pictures: str = ""
    """What is peculiar to those it was trained on, see `TaskSuite.pictures`; the suite tells."""
    value_width: Size = 128
    """Hidden width of the value head."""

    def __post_init__(self) -> None:
        """Check what the parts demand of each other."""
        super().__post_init__()
        if len(set(self.things)) < len(self.things):
            raise ConfigError(f"things are {list(self.things)}, expected each once")
        if isinstance(self.backbone, BackboneConfig):
            self.backbone.check_image_size(self.image_size)
        if self.execution_horizon > self.action_horizon:
            raise ConfigError(
                f"execution_horizon = {self.execution_horizon} must be from 1 to action_horizon = "
                f"{self.action_horizon}"
            )
        if self.action_horizon % self.action_expert.num_action_tokens:
            raise ConfigError(
                f"action_horizon = {self.action_horizon} must be a multiple of "
                f"action_expert.num_action_tokens = {self.action_expert.num_action_tokens}"
            )
        if bool(self.vocabulary) == isinstance(self.backbone, PretrainedBackboneConfig):
            raise ConfigError(
                f"vocabulary has {len(self.vocabulary)} words; a backbone with random weights "
                "needs some, one with a source brings a tokenizer of its own"
            )
        check_vocabulary(self.vocabulary)


@dataclass(frozen=True)
class ActionChunk(Rows):
    """What the policy decided for B observations.

    Attributes:
        actions: [B, H, A] float32 in [-1, 1], to be executed.
        trace: How they were sampled.
        log_prob: [B, P] log-density of the parts of the trace.
        value: [B].
    """

    actions: Tensor
    trace: FlowTrace
    log_prob: Tensor
    value: Tensor


class VLAPolicy(nn.Module):
    """Vision-language-action policy with a knowledge-insulated action expert.

    The prefix is [camera 0 | camera 1 | ... | words | state] by position, with the state first in
    memory; see `Context` for what it leaves.
    """

    def __init__(
        self,
        config: PolicyConfig,
        *,
        vlm_files: Path | None = None,
        dtype: Dtype = "float32",
        holds_dtype: bool = False,
    ) -> None:
        """Build with random weights on the CPU, those of a pretrained backbone excepted.

        Nothing is normalised yet. All weights but the backbone's are float32, and so is what they
        compute.

        Args:
            config: Architecture, with an embodiment.
            vlm_files: Of a checkpoint with a pretrained backbone: its source is not asked, and the
                weights, random here too, are for the caller to load.
            dtype: Numbers in which the backbone computes and contexts are kept.
            holds_dtype: Whether the backbone's weights are of that type as well, which saves
                memory and time but is no good for training them: small steps would be lost.

        Raises:
            ConfigError: The backbone cannot be loaded or does not fit the action expert, or there
                is no embodiment.
        """
        super().__init__()
        if config.embodiment is None:
            raise ConfigError(
                "embodiment is missing: a policy is built for one robot; give that of a suite, "
                "find_suite(NAME).embodiment"
            )
        self.config, self.embodiment = config, config.embodiment
        num_numbers, num_cameras = len(self.embodiment.action), len(self.embodiment.cameras)
        self.base: BaseWeights | None = None
        self.norm_stats = NormStats(len(self.embodiment.state), num_numbers)
        vlm = _make_vlm(config, vlm_files, TORCH_DTYPE[dtype if holds_dtype else "float32"])
        self.tokenizer = vlm.tokenizer
        self.backbone = Backbone(vlm, num_cameras, TORCH_DTYPE[dtype])
        sizes = self.backbone.sizes
        width = sizes.width
        self.state_in = nn.Linear(len(self.embodiment.state), width)
        self.action_expert = ActionExpert(
            config.action_expert, sizes, config.action_horizon, num_numbers
        )
        tokens = config.action_expert.num_action_tokens
        self.token_heads = TokenHeads(
            width,
            num_action_tokens=tokens,
            numbers_per_token=config.action_horizon // tokens * num_numbers,
            num_action_bins=config.num_action_bins,
            num_position_bins=config.num_position_bins,
            num_cameras=num_cameras,
        )
        self.grounding = GroundingHeads(width, sizes.tokens_per_side, len(config.things))
        self.value_head = ValueHead(self.backbone.feature_dim, config.value_width)
        self.adapters = AdapterBank(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.output.weight.device

    def set_exploration(
        self, noise_level: float | None = None, stochastic_step: StochasticStep | None = None
    ) -> None:
        """Change how actions are sampled from now on; what is None stays as it is.

        Raises:
            ConfigError: The noise level is not positive.
        """
        changes = {"noise_level": noise_level, "stochastic_step": stochastic_step}
        given = {name: value for name, value in changes.items() if value is not None}
        self.config = replace(self.config, flow=replace(self.config.flow, **given))

    def tokenize(self, observation: Observation) -> TokenizedObservation:
        """Check an observation and turn it into tensors on the policy's device.

        Where its arrays are there already, they are not copied.

        Raises:
            SpecError: The observation does not fit the policy.
        """
        observation.validate(self.embodiment)
        images, state = _tensor(observation.images), _tensor(observation.state)
        self._check_images(images.shape)
        parts = images, state, *self.tokenizer.encode(observation.instruction)
        return TokenizedObservation(*(part.to(self.device, non_blocking=True) for part in parts))

    def encode(self, observation: Observation | TokenizedObservation) -> Context:
        """Run the backbone once over the prefix.

        Call it under `torch.no_grad()` while acting; the context carries the graph otherwise.

        Raises:
            SpecError: The observation does not fit the policy.
        """
        if isinstance(observation, Observation):
            observation = self.tokenize(observation)
        image_tokens = self.backbone.embed_images(observation.images)
        prefix, valid = self._prefix(image_tokens, observation.compact())
        _, num_cameras, num_tokens, _ = image_tokens.shape
        padded_length = 1 + num_cameras * num_tokens + observation.token_ids.shape[1]
        return self.backbone.context(prefix, valid, padded_length=padded_length)

    def example_observation(self) -> Observation:
        """Return one observation of the right shape: black images, a word, a state of zeros."""
        size, embodiment = self.config.image_size, self.embodiment
        return Observation(
            np.zeros((1, len(embodiment.cameras), size, size, 3), np.uint8),
            np.zeros((1, len(embodiment.state)), np.float32),
            ((*self.config.vocabulary, "pick")[0],),
        )

    @torch.no_grad()
    def act(
        self,
        context: Context,
        *,
        deterministic: bool,
        generator: torch.Generator | None = None,
    ) -> ActionChunk:
        """Choose an action chunk for every observation.

        Args:
            context: From `encode`.
            deterministic: Walk the flow ODE; the trace then holds the last step and its mode.
            generator: Source of all randomness, on the CPU.
        """
        shape = len(context), self.config.action_horizon, len(self.embodiment.action)
        draws = flow.draw(self.config.flow, shape, generator, deterministic=deterministic)
        return self.walk(context, draws.to(self.device))

    @torch.no_grad()
    def walk(self, context: Context, draws: FlowDraws) -> ActionChunk:
        """Choose action chunks as `act` does, with what is random drawn before."""
        settings, memory = self.config.flow, self._remember(context)
        sampled, trace, clean = flow.sample(
            lambda x, flow_time: self._denoise(memory, x, flow_time),
            draws,
            num_steps=settings.num_steps,
            noise_level=settings.noise_level,
        )
        actions = self.norm_stats.unnormalize_action(sampled)
        log_prob = self._density(trace, clean).log_prob()
        return ActionChunk(actions, trace, log_prob, self.value(context))

    def evaluate_actions(self, context: Context, trace: FlowTrace) -> Evaluation:
        """Return density and value [B] of stored chunks.

        Runs the action expert once, at the stored step on the stored keys and values; the
        backbone is not run again.
        """
        flow_time, _ = flow.trace_times(trace, self.config.flow.num_steps)
        clean = self._denoise(self._remember(context), trace.x, flow_time)
        return Evaluation(self._density(trace, clean), self.value(context))

    def value(self, context: Context) -> Tensor:
        """Return the value [B]; its gradient stops at the context."""
        return self.value_head(context.features)

    def losses(
        self,
        batch: SupervisedBatch,
        *,
        terms: frozenset[str] = LOSS_TERMS,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return the supervised losses named by `terms`, each averaged over its valid entries.

        Only what the terms need is computed: leave out a term instead of weighing it with 0.

        Raises:
            ConfigError: An unknown term.
        """
        for name in sorted(terms - LOSS_TERMS):
            raise unknown_name("losses", "loss term", name, LOSS_TERMS)
        self._check_images(batch.observation.images.shape)
        image_tokens = self.backbone.embed_images(batch.observation.images)
        losses: dict[str, Tensor] = {}
        if "presence" in terms:
            losses["presence"] = self.grounding.presence_loss(image_tokens, batch)
        if "offset" in terms:
            losses["offset"] = self.grounding.offset_loss(image_tokens, batch)
        if terms <= losses.keys():
            return losses
        queries = self.token_heads.queries if terms & QUERY_TERMS else None
        prefix = self._prefix(image_tokens, batch.observation.compact())
        output = self.backbone(*prefix, queries)
        shape = image_tokens.shape
        first_hidden = output.first_hidden[:, 1 : 1 + shape[1] * shape[2]].reshape(shape)
        if "pointer" in terms:
            losses["pointer"] = self.grounding.pointer_loss(first_hidden, batch)
        if "named_offset" in terms:
            losses["named_offset"] = self.grounding.named_offset_loss(first_hidden, batch)
        if "action_tokens" in terms:
            losses["action_tokens"] = self.token_heads.action_loss(output.query_hidden, batch)
        if "answer_tokens" in terms:
            losses["answer_tokens"] = self.token_heads.answer_loss(output.state_hidden, batch)
        if "flow" in terms:
            losses["flow"] = self.flow_loss(output.context, batch, generator)
        return losses

    def flow_loss(
        self, context: Context, batch: SupervisedBatch, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the flow-matching loss of the batch's chunks given an encoded context."""
        actions = self.norm_stats.normalize_action(batch.action_chunk)
        draws = (len(actions), self.config.flow.num_flow_draws)
        flow_time = flow.sample_flow_time(draws, generator).to(self.device)
        noise = torch.randn((*draws, *actions.shape[1:]), generator=generator).to(self.device)
        x = flow.interpolate(actions[:, None], noise, flow_time)
        memory = self._remember(context, draws[1])
        prediction = self.action_expert(memory, x, flow_time)
        mask = batch.action_mask & batch.has_action[:, None]
        return flow.flow_loss(prediction, actions, flow_time, mask)

    def _prefix(
        self, image_tokens: Tensor, observation: TokenizedObservation
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, L, width] and which are valid."""
        state_token = self.state_in(self.norm_stats.normalize_state(observation.state))[:, None]
        always = torch.cat([state_token, image_tokens.flatten(1, 2)], dim=1)
        words, word_mask = self.backbone.embed_words(observation.token_ids), observation.word_mask
        valid = torch.cat([word_mask.new_ones(always.shape[:2]), word_mask], dim=1)
        return torch.cat([always, words], dim=1), valid

    def _remember(self, context: Context, draws: int = 1) -> Memory:
        context = context.compact().insulate(self.config.insulation)
        return self.action_expert.remember(context, draws)

    def _denoise(self, memory: Memory, x: Tensor, flow_time: Tensor) -> Tensor:
        return self.action_expert(memory, x[:, None], flow_time[:, None]).squeeze(1)

    def _density(self, trace: FlowTrace, clean: Tensor) -> Density:
        return flow.step_density(
            trace,
            clean,
            num_steps=self.config.flow.num_steps,
            noise_level=self.config.flow.noise_level,
            execution_horizon=self.config.execution_horizon,
        )

    def _check_images(self, shape: Sequence[int]) -> None:
        cameras, size = self.embodiment.cameras, self.config.image_size
        if tuple(shape[1:]) != (len(cameras), size, size, 3):
            raise SpecError(
                f"images: got {tuple(shape)}, the policy expects {len(cameras)} cameras "
                f"({', '.join(cameras)}) of {size} x {size} pixels: [B, {len(cameras)}, {size}, "
                f"{size}, 3]; simulate with image_size = {size}"
            )


def _make_vlm(config: PolicyConfig, files: Path | None, dtype: torch.dtype) -> VisionLanguageModel:
    if isinstance(config.backbone, PretrainedBackboneConfig):
        return load_vlm(config.backbone, config.max_words, files, dtype)
    tokenizer = WordTokenizer(config.vocabulary, config.max_words)
    return build_smolvlm(config.backbone, tokenizer, config.image_size, dtype)


def _tensor(array: Any) -> Tensor:
    """Share the memory of an array of any library and device."""
    if isinstance(array, np.ndarray):  # which may be read-only or in another order
        array = np.require(array, requirements=["C", "W"])
    return torch.from_dlpack(array)
