"""A pretrained vision-language model of transformers, loaded and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from vla_crl.config import Settings
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.models.tokenizer import SubwordTokenizer
from vla_crl.models.vlm import ImageTransform, NumLayers, VisionLanguageModel

RESAMPLE = {1: "bicubic", 2: "bilinear", 3: "bicubic"}
"""PIL's number of a filter, as torch calls it. Lanczos (1) becomes bicubic, as in torchvision."""


@dataclass(frozen=True, kw_only=True)
class PretrainedBackboneConfig(Settings):
    """A pretrained vision-language model; its sizes and its tokenizer are its own.

    It has to turn an image of a fixed size into a square grid of tokens, and its text model needs
    full attention and plain rotary positions: SmolVLM, Idefics3, PaliGemma, LLaVA, InternVL do.
    """

    source: str
    """Folder written by `save_pretrained`, absolute or from the working directory on, or a model's
    name on the Hugging Face hub."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    num_layers: NumLayers | None = None
    """Text layers used, from the first on; None: all. The action expert has as many."""


def load_vlm(
    config: PretrainedBackboneConfig,
    max_words: int,
    saved: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> VisionLanguageModel:
    """Load a pretrained model, its tokenizer and what its image processor does to images.

    Args:
        config: Where from, and how much of it.
        max_words: Tokens of the longest instruction.
        saved: Folder that `VisionLanguageModel.save_files` wrote. The model is then built from it
            with random weights, for the caller to fill, and the source is not looked at.
        dtype: Of its weights.

    Raises:
        ConfigError: There is no such model, some of its weights are missing, or it is of a kind
            that cannot be a backbone.
        CheckpointError: What was saved is damaged.
    """
    name = f"backbone '{saved or config.source}'"
    if saved and not saved.is_dir():
        raise CheckpointError(f"{saved} is missing; copy the whole checkpoint directory")
    try:
        model, tokenizer, processor, missing = _load_parts(config, saved, dtype)
        _check_text_model(model.get_decoder(), name)
        image_transform = _image_transform(model.config, processor)
    except ConfigError:
        raise
    except Exception as error:  # no kind of error is common to all that can go wrong there
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if saved:
            raise CheckpointError(
                f"{saved} cannot be read; copy the whole checkpoint again. {reason}"
            ) from error
        raise ConfigError(
            f"{name}: cannot be loaded. Name a vision-language model of the Hugging Face hub "
            "(which needs the network once) or a folder with its config, weights, tokenizer and "
            f"image processor. {reason}"
        ) from error
    if missing:
        raise ConfigError(
            f"{name}: the weights of {len(missing)} parameters are missing, first "
            f"'{min(missing)}'; name a complete vision-language model"
        )
    num_words, num_embeddings = len(tokenizer), model.get_input_embeddings().num_embeddings
    if num_words > num_embeddings:
        raise ConfigError(
            f"{name}: its tokenizer has {num_words} tokens, but the model embeds {num_embeddings}; "
            "give it the tokenizer it was trained with"
        )
    _cut_text_layers(model.get_decoder(), config.num_layers, name)
    return VisionLanguageModel(
        model,
        SubwordTokenizer(tokenizer, max_words),
        image_transform,
        name,
        files=(model.config, tokenizer, processor),
    )


def _load_parts(
    config: PretrainedBackboneConfig, saved: Path | None, dtype: torch.dtype
) -> tuple[Any, Any, Any, Any]:
    """Return model, tokenizer, image processor and the names of weights that were not found."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
    from transformers.utils import logging

    is_folder = config.source.startswith(("/", "./", "../"))
    if is_folder and not saved and not Path(config.source).is_dir():
        raise FileNotFoundError("there is no such folder")  # the hub need not be asked
    source = saved or config.source
    options: dict[str, Any] = {"trust_remote_code": False}
    if not saved:
        options["revision"] = config.revision
    verbosity = logging.get_verbosity()
    # It would tell of the unused language-modelling head, and of torchvision, which is not needed.
    logging.set_verbosity_error()
    try:
        settings = AutoConfig.from_pretrained(source, **options)
        if not {"vision_config", "text_config"} <= {*cast(Any, type(settings)).sub_configs}:
            raise ValueError(f"'{settings.model_type}' is no model of images and text")
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        processor = AutoImageProcessor.from_pretrained(source, **options)
        if saved:
            return AutoModel.from_config(settings, dtype=dtype), tokenizer, processor, ()
        model, info = AutoModel.from_pretrained(
            source, dtype=dtype, output_loading_info=True, **options
        )
    finally:
        logging.set_verbosity(verbosity)
    return model, tokenizer, processor, info["missing_keys"]


def _image_transform(settings: Any, processor: Any) -> ImageTransform:
    size = getattr(settings.vision_config, "image_size", None)
    size = size if isinstance(size, int) or size is None else size[0]
    resample = RESAMPLE.get(processor.resample)
    if size is None or resample is None:
        raise ValueError(
            f"its images have size {size} and are resized by PIL's filter {processor.resample}; "
            f"expected one fixed size and a filter of {', '.join(map(str, RESAMPLE))}"
        )
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        mean, std = processor.image_mean, processor.image_std
    if np.shape(mean) != (3,) or np.shape(std) != (3,) or min(std) <= 0.0:
        raise ValueError(f"image_mean {mean}, image_std {std}; expected three each, std above 0")
    rescale = processor.rescale_factor if processor.do_rescale else 1.0
    return ImageTransform(size, tuple(mean), tuple(std), rescale, resample)


def _check_text_model(decoder: Any, name: str) -> None:
    """Refuse what recorder, attention mask of the prefix or action expert cannot work with."""
    kind = f"{name}: its text model is a {type(decoder).__name__}"
    if not hasattr(decoder, "layers"):
        raise ConfigError(f"{kind}; expected a decoder with layers, as Llama has")
    types = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if types != {"full_attention"}:
        raise ConfigError(
            f"{kind} with layers of {', '.join(sorted(types))}; expected full_attention in all"
        )
    rope = getattr(decoder.config, "rope_parameters", None) or {}
    if "rope_theta" not in rope or "mrope_section" in rope:
        raise ConfigError(
            f"{kind} with rope_parameters {rope}; expected rotary positions in one dimension, with "
            "one rope_theta for all layers"
        )


def _cut_text_layers(decoder: Any, num_layers: int | None, name: str) -> None:
    if num_layers is not None:
        if num_layers > len(decoder.layers):
            raise ConfigError(
                f"{name}: num_layers is {num_layers}, but the text model has {len(decoder.layers)}"
            )
        decoder.layers = decoder.layers[:num_layers]
