"""The VLA policy: backbone, action expert, token heads and value head behind one contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_crl.compute import Dtype
from vla_crl.config import Chosen, ImageSize, Settings, Size, from_mapping, to_mapping
from vla_crl.contracts import Embodiment, Observation
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.models.adapter_bank import AdapterBank
from vla_crl.models.backbone import TORCH_DTYPE, Backbone
from vla_crl.models.context import (
    Context,
    Insulation,
    TokenizedObservation,
)
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.heads.head import HeadConfig, HeadSizes, find_head
from vla_crl.models.lora import BaseWeights
from vla_crl.models.normalization import NormStats
from vla_crl.models.pretrained_vlm import PretrainedBackboneConfig, load_vlm
from vla_crl.models.token_heads import (
    LOSS_TERMS,
    QUERY_TERMS,
    GroundingHeads,
    SupervisedBatch,
    TokenHeads,
    masked_mean,
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
    head: Annotated[HeadConfig, Chosen("head", find_head)] = field(default_factory=FlowConfig)
    """Action head: its kind, and the settings of that kind."""
    insulation: Insulation = "full"
    """Gradient from the action head to the context: stopped, passed on, or scaled by (0, 1)."""
    action_horizon: Size = 8
    """Actions predicted per chunk."""
    execution_horizon: Size = 4
    """Leading actions that are executed and count in the log-probability."""
    num_action_queries: Size = 2
    """Query tokens from which the backbone learns to tell actions, see TokenHeads."""
    num_action_bins: Size = 32
    """Bins of [-1, 1] for a number of these actions."""
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
        if self.action_horizon % self.num_action_queries:
            raise ConfigError(
                f"action_horizon = {self.action_horizon} must be a multiple of "
                f"num_action_queries = {self.num_action_queries}"
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
    trace: Rows
    log_prob: Tensor
    value: Tensor


class VLAPolicy(nn.Module):
    """Vision-language-action policy with a knowledge-insulated action head.

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
        sizes, width = self.backbone.sizes, self.backbone.sizes.width
        self.state_in = nn.Linear(len(self.embodiment.state), width)
        self.head = find_head(config.head.kind)(
            config.head,
            HeadSizes(sizes, config.action_horizon, config.execution_horizon, num_numbers),
        )
        self.head.extend = self.backbone.extend
        self.token_heads = TokenHeads(
            width,
            num_action_tokens=config.num_action_queries,
            numbers_per_token=config.action_horizon // config.num_action_queries * num_numbers,
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

    def explore(self, settings: Mapping[str, Any]) -> None:
        """Change how actions are sampled from now on.

        Args:
            settings: Of the head, some of `ActionHead.exploration`; others stay as they are.

        Raises:
            ConfigError: The head has no such setting, or not such a value.
        """
        kind, known = self.config.head.kind, self.head.exploration
        for name in settings:
            if name not in known:
                raise unknown_name(f"exploration of the head '{kind}'", "setting", name, known)
        plain = to_mapping(self.config.head) | dict(settings)
        head = from_mapping(type(self.config.head), plain, f"exploration of the head '{kind}'")
        self.head.config = head
        self.config = replace(self.config, head=head)

    @property
    def exploration(self) -> dict[str, Any]:
        """How actions are sampled now, as `explore` takes it."""
        settings = to_mapping(self.config.head)
        return {name: settings[name] for name in self.head.exploration}

    @property
    def learnt_exploration(self) -> tuple[str, ...]:
        """Beginnings of the names of parameters that are learnt to explore with."""
        return tuple(f"head.{name}" for name in self.head.exploration_parameters)

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
        self, context: Context, *, deterministic: bool, generator: torch.Generator | None = None
    ) -> ActionChunk:
        """Choose an action chunk for every observation.

        Args:
            context: From `encode`.
            deterministic: Return the head's mode; of a flow, walk the ODE.
            generator: Source of all randomness, on the CPU.
        """
        insulated = self.insulate(context)
        found = self.head.sample(insulated, deterministic=deterministic, generator=generator)
        actions, log_prob = self.to_actions(found.actions), found.density.log_prob()
        return ActionChunk(actions, found.trace, log_prob, self.value(context))

    def to_actions(self, chunk: Tensor) -> Tensor:
        """Return the actions [B, H, A] in [-1, 1] of chunks as the head counts them."""
        if self.head.is_normalized:
            return self.norm_stats.unnormalize_action(chunk)
        return chunk.clamp(-1.0, 1.0)

    def evaluate_actions(self, context: Context, trace: Rows) -> Evaluation:
        """Return density and value [B] of stored chunks; the backbone does not see again what was.

        Args:
            context: Of the observations.
            trace: Of chunks that a policy of this architecture has chosen.
        """
        return Evaluation(self.head.density(self.insulate(context), trace), self.value(context))

    def imitation(
        self,
        context: Context,
        actions: Tensor,
        mask: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the supervised loss [B] of chunks, the mean over their actions that count.

        Args:
            context: Of the observations.
            actions: [B, H, A] in [-1, 1].
            mask: [B, H] bool, which count; 0 where none does.
            generator: Source of all randomness, on the CPU.
        """
        losses = self._imitation(context, actions, generator)
        return (losses * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def insulate(self, context: Context) -> Context:
        """Return a context as its head reads it: without padding, gradients as the config says."""
        return context.compact().insulate(self.config.insulation)

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
        if "imitation" in terms:
            losses["imitation"] = masked_mean(
                self._imitation(output.context, batch.action_chunk, generator),
                batch.action_mask & batch.has_action[:, None],
            )
        return losses

    def _imitation(
        self, context: Context, actions: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return the head's loss [B, H] of each action in [-1, 1]."""
        if self.head.is_normalized:
            actions = self.norm_stats.normalize_action(actions)
        return self.head.imitation(self.insulate(context), actions, generator)

    def _prefix(
        self, image_tokens: Tensor, observation: TokenizedObservation
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, L, width] and which are valid."""
        state_token = self.state_in(self.norm_stats.normalize_state(observation.state))[:, None]
        always = torch.cat([state_token, image_tokens.flatten(1, 2)], dim=1)
        words, word_mask = self.backbone.embed_words(observation.token_ids), observation.word_mask
        valid = torch.cat([word_mask.new_ones(always.shape[:2]), word_mask], dim=1)
        return torch.cat([always, words], dim=1), valid

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
