"""Vision-language models of transformers, and a small one built from sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from vla_crl.config import Settings, Size
from vla_crl.errors import ConfigError
from vla_crl.models.tokenizer import PADDING_ID, SubwordTokenizer, WordTokenizer

MAX_PATCHES = 2**14
"""Of an image; each looks at all others."""
NumLayers = Annotated[int, Interval(ge=1, le=1000)]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Settings):
    """A SmolVLM with random weights: sizes of vision tower, connector and text model."""

    patch_size: Size = 8
    """Height and width of a patch in pixels."""
    vision_width: Size = 96
    """Width of the vision tower."""
    num_vision_layers: Annotated[int, Interval(ge=0, le=1000)] = 1
    """Transformer layers of the vision tower; 0 leaves patches, positions and a norm."""
    num_vision_heads: Size = 3
    """Attention heads of the vision tower."""
    vision_mlp_width: Size = 192
    """Hidden width of the vision tower's MLP."""
    pixel_shuffle: Size = 2
    """Edge of the square of patches that becomes one token."""
    width: Size = 128
    """Width of the text model."""
    num_layers: NumLayers = 3
    """Layers of the text model; the action expert has as many."""
    num_heads: Size = 4
    """Query heads of the text model."""
    num_kv_heads: Size = 4
    """Key and value heads; fewer make the stored context smaller."""
    mlp_width: Size = 320
    """Hidden width of the text model's gated MLP."""
    rope_theta: Annotated[float, Interval(gt=0, le=1e12)] = 10_000.0
    """Base of the rotary position embedding."""
    initializer_range: Annotated[float, Interval(ge=0, le=100)] = 0.06
    """Standard deviation of the initial weights; 0.02 learns more slowly at this width."""

    def __post_init__(self) -> None:
        """Check what the parts demand of each other."""
        super().__post_init__()
        for name, whole, part in (
            ("vision_width by num_vision_heads", self.vision_width, self.num_vision_heads),
            ("width by 2 * num_heads", self.width, 2 * self.num_heads),
            ("num_heads by num_kv_heads", self.num_heads, self.num_kv_heads),
        ):
            if whole % part:
                raise ConfigError(f"backbone: {name} must divide evenly, got {whole} by {part}")

    def check_image_size(self, image_size: int) -> None:
        """Refuse pixels that do not become whole tokens.

        Raises:
            ConfigError: Height and width do not divide evenly.
        """
        edge = self.patch_size * self.pixel_shuffle
        num_patches = (image_size // self.patch_size) ** 2
        if num_patches > MAX_PATCHES:
            raise ConfigError(
                f"image_size = {image_size} has {num_patches:,} patches of backbone.patch_size = "
                f"{self.patch_size}, expected at most {MAX_PATCHES:,}"
            )
        if image_size % edge:
            least = image_size // edge * edge
            sizes = f"{least} or {least + edge}" if least else f"{edge}"
            raise ConfigError(
                f"image_size = {image_size}, expected a multiple of {edge} (backbone.patch_size = "
                f"{self.patch_size} by backbone.pixel_shuffle = {self.pixel_shuffle}), e.g. {sizes}"
            )


@dataclass(frozen=True)
class ImageTransform:
    """From raw pixels to what a vision tower was trained on.

    Attributes:
        size: Height and width; images of another size are resized.
        mean: Per channel, of pixels after rescaling.
        std: Likewise.
        rescale: Factor on raw pixels.
        resample: Interpolation, as `torch.nn.functional.interpolate` calls it.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1.0 / 255.0
    resample: str = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, 3] uint8 to pixels [N, 3, size, size] float32."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        if pixels.shape[-1] != self.size:
            size = (self.size, self.size)
            pixels = functional.interpolate(pixels, size, mode=self.resample, antialias=True)
            pixels = pixels.clamp_(0.0, 255.0)  # bicubic weights overshoot
        # (rescale * pixel - mean) / std, in one pass.
        scale = pixels.new_tensor([self.rescale / std for std in self.std])
        shift = pixels.new_tensor([-m / std for m, std in zip(self.mean, self.std, strict=True)])
        return torch.addcmul(shift[:, None, None], pixels, scale[:, None, None])


@dataclass(frozen=True)
class VisionLanguageModel:
    """What a backbone is made of.

    Attributes:
        model: Base model of transformers, without a language-modelling head.
        tokenizer: Of the instructions.
        image_transform: Of the cameras' images.
        name: What errors call it.
        files: Of a pretrained model, what writes its `config.json` and the files of tokenizer and
            image processor.
    """

    model: Any
    tokenizer: WordTokenizer | SubwordTokenizer
    image_transform: ImageTransform
    name: str = "backbone"
    files: tuple[Any, ...] = ()

    @property
    def is_pretrained(self) -> bool:
        """Whether its weights were somebody's before."""
        return bool(self.files)

    def embed_images(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, 3] uint8 to tokens [N, T, width] of the text model."""
        pixels = self.image_transform(images).to(self.model.dtype)
        if hasattr(self.model, "connector"):
            # SmolVLM and Idefics3: `get_image_features` would also look for frames of padding,
            # which takes longer than a small tower.
            return self.model.connector(self.model.vision_model(pixel_values=pixels)[0])
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features if isinstance(features, Tensor) else torch.stack([*features])

    def save_files(self, folder: Path) -> None:
        """Write all but the weights: what `load_vlm` needs instead of the source."""
        for part in self.files:
            part.save_pretrained(folder)


def build_smolvlm(
    config: BackboneConfig,
    tokenizer: WordTokenizer,
    image_size: int,
    dtype: torch.dtype = torch.float32,
) -> VisionLanguageModel:
    """Build a SmolVLM of these sizes with random weights of type `dtype`.

    It looks at images of `image_size` pixels.
    """
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMModel
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    vision = SmolVLMVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=config.vision_mlp_width,
        num_hidden_layers=config.num_vision_layers,
        num_attention_heads=config.num_vision_heads,
        image_size=image_size,
        patch_size=config.patch_size,
        initializer_range=config.initializer_range,
    )
    text = LlamaConfig(
        vocab_size=tokenizer.num_words,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        initializer_range=config.initializer_range,
        pad_token_id=PADDING_ID,
        bos_token_id=None,
        eos_token_id=None,
    )
    whole = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=config.pixel_shuffle)
    whole._attn_implementation = "sdpa"
    half = (0.5, 0.5, 0.5)  # SmolVLM's own normalisation
    model = SmolVLMModel(whole)
    for parameter in model.parameters():  # not the buffers: angles of positions remain exact
        parameter.data = parameter.data.to(dtype)
    return VisionLanguageModel(model, tokenizer, ImageTransform(image_size, mean=half, std=half))
