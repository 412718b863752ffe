import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_crl.contracts import ARM, Observation
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.token_heads import SupervisedBatch
from vla_crl.models.vlm import BackboneConfig

BACKBONE = BackboneConfig(
    patch_size=8,
    vision_width=12,
    num_vision_heads=2,
    vision_mlp_width=16,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    mlp_width=24,
    initializer_range=0.3,
)
CONFIG = PolicyConfig(
    embodiment=ARM,
    image_size=32,
    vocabulary=("pick", "up", "the", "red", "blue", "cube", "where", "is"),
    max_words=6,
    backbone=BACKBONE,
    head=FlowConfig(expert=ActionExpertConfig(width=12, num_heads=2, mlp_width=16)),
    things=("red cube", "blue cube", "cup"),
    value_width=8,
)
PolicyFactory = Callable[..., VLAPolicy]


@pytest.fixture(scope="session")
def make_policy() -> PolicyFactory:
    """Build a small policy with reproducible weights; keywords replace settings."""

    def build(*, backbone: dict[str, int] | None = None, **settings: object) -> VLAPolicy:
        torch.manual_seed(0)
        config = replace(CONFIG, backbone=replace(BACKBONE, **(backbone or {})), **settings)
        policy = VLAPolicy(config)
        # A value head that starts at 0 would hide mistakes.
        torch.nn.init.normal_(policy.value_head.output.weight)
        return policy

    return build


@pytest.fixture
def policy(make_policy: PolicyFactory) -> VLAPolicy:
    return make_policy()


@pytest.fixture
def observation() -> Observation:
    rng = np.random.default_rng(0)
    return Observation(
        images=rng.integers(0, 256, (4, 2, 32, 32, 3), dtype=np.uint8),
        state=rng.standard_normal((4, 8)).astype(np.float32),
        instruction=("pick up the red cube", "where is the blue cube", "pick up", "the cube"),
    )


@pytest.fixture
def batch(policy: VLAPolicy, observation: Observation) -> SupervisedBatch:
    generator = torch.Generator().manual_seed(0)
    return SupervisedBatch(
        observation=policy.tokenize(observation),
        action_chunk=torch.rand(4, 8, 7, generator=generator) * 2.0 - 1.0,
        action_mask=torch.arange(8).expand(4, 8) < torch.tensor([[8], [8], [5], [1]]),
        has_action=torch.tensor([True, False, True, True]),
        named_uv=torch.rand(4, 2, 2, 2, generator=generator),
        named_visible=torch.rand(4, 2, 2, generator=generator) < 0.7,
        object_uv=torch.rand(4, 2, 3, 2, generator=generator),
        object_visible=torch.rand(4, 2, 3, generator=generator) < 0.7,
        has_grounding=torch.ones(4, dtype=torch.bool),
    )


VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 300,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}


def smolvlm(**text):
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    text = TEXT | {"model_type": "llama"} | text
    config = SmolVLMConfig(vision_config=VISION, text_config=text, scale_factor=2)
    return SmolVLMForConditionalGeneration(config)


def idefics3():
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    text = TEXT | {"model_type": "llama"}
    config = Idefics3Config(vision_config=VISION, text_config=text, scale_factor=2)
    return Idefics3ForConditionalGeneration(config)


def paligemma(text="gemma"):
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    vision = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
    text = TEXT | {"model_type": text}
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=32)
    )


def llava(*, text=None, **settings):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = VISION | {"model_type": "clip_vision_model"}
    text = TEXT | {"model_type": "qwen3"} | (text or {})
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, **settings)
    )


def internvl():
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = VISION | {"image_size": [32, 32], "patch_size": [8, 8]}
    text = TEXT | {"model_type": "qwen2"}
    return InternVLForConditionalGeneration(InternVLConfig(vision_config=vision, text_config=text))


def mistral3():
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = VISION | {"model_type": "pixtral", "head_dim": 12}
    text = TEXT | {"model_type": "mistral", "sliding_window": None}
    return Mistral3ForConditionalGeneration(Mistral3Config(vision_config=vision, text_config=text))


def qwen2_5_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config=vision | {"out_hidden_size": 32},
            text_config=TEXT | {"rope_parameters": rope},
        )
    )


def clip():
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT))


def llama():
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(LlamaConfig(**TEXT))


FAMILIES = {
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "paligemma": paligemma,
    "llava": llava,
    "internvl": internvl,
    "mistral3": mistral3,
    "qwen2_5_vl": qwen2_5_vl,
    "clip": clip,
    "llama": llama,
}


@pytest.fixture(scope="session")
def other_files(tmp_path_factory) -> Path:
    """A subword tokenizer and an image processor, as models bring them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder = tmp_path_factory.mktemp("other_files")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["pick up the red cube, where is it"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>"
    ).save_pretrained(folder)
    SiglipImageProcessorPil(
        size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_vlm(tmp_path_factory, other_files) -> Callable[..., Path]:
    """Write a small model of a family as its makers would, and return the folder."""

    def write(family: str, **settings: object) -> Path:
        folder = tmp_path_factory.mktemp("vlm")
        FAMILIES[family](**settings).save_pretrained(folder)
        return Path(shutil.copytree(other_files, folder, dirs_exist_ok=True))

    return write
