"""Pretrained backbones: small models of several families, written by transformers itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from vla_crl.config import load_toml
from vla_crl.contracts import ARM, Observation
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files.checksums import write_sums
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.adapters import add_lora, trainable_parameters
from vla_crl.models.checkpoint import build_policy, load_policy, save_policy
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.pretrained_vlm import PretrainedBackboneConfig
from vla_crl.models.vlm import BackboneConfig, ImageTransform
from vla_crl.testing.check_policy import check_policy

FAMILIES = ["smolvlm", "idefics3", "paligemma", "llava", "internvl"]
CONFIG = PolicyConfig(
    embodiment=ARM,
    image_size=48,
    max_words=20,
    backbone=PretrainedBackboneConfig(source="?"),
    head=FlowConfig(expert=ActionExpertConfig(width=12, num_heads=4, mlp_width=16)),
    things=("red cube", "blue cube", "cup"),
    value_width=8,
)


@pytest.fixture(scope="session", params=FAMILIES)
def source(request, save_vlm) -> Path:
    torch.manual_seed(0)
    return save_vlm(request.param)


def policy_from(source: Path, **backbone: object) -> VLAPolicy:
    torch.manual_seed(1)
    settings = replace(CONFIG.backbone, source=str(source), **backbone)
    return VLAPolicy(replace(CONFIG, backbone=settings)).eval()


@pytest.fixture
def seen() -> Observation:
    rng = np.random.default_rng(0)
    return Observation(
        images=rng.integers(0, 256, (2, 2, 48, 48, 3), dtype=np.uint8),
        state=rng.standard_normal((2, 8)).astype(np.float32),
        instruction=("pick up the red cube", "where is the cube"),
    )


def test_a_policy_with_a_pretrained_backbone_keeps_the_contract(source, seen):
    policy = policy_from(source)
    check_policy(policy, seen)
    sizes = policy.backbone.sizes
    assert (sizes.width, sizes.num_layers, sizes.num_kv_heads, sizes.head_dim) == (32, 3, 2, 8)


def test_the_weights_are_those_of_the_source(source):
    policy, whole = policy_from(source), AutoModel.from_pretrained(source)
    for name, tensor in policy.backbone.model.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    assert not policy.backbone.image_position.any()


def test_image_tokens_are_those_of_transformers(source):
    policy, whole = policy_from(source), AutoModel.from_pretrained(source).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(source)
    pixels = processor([*images.reshape(4, 32, 32, 3)], return_tensors="pt").pixel_values
    pixels = pixels[:, None] if hasattr(whole, "connector") else pixels
    expected = whole.get_image_features(pixel_values=pixels).pooler_output
    expected = torch.stack([*expected]).unflatten(0, (2, 2))
    ours = policy.backbone.embed_images(torch.from_numpy(images))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_image_tokens_are_ordered_row_by_row_from_the_top_left(source):
    policy = policy_from(source)
    side = policy.backbone.sizes.tokens_per_side
    dark = np.zeros((1, 2, 32, 32, 3), dtype=np.uint8)
    tokens = policy.backbone.embed_images(torch.from_numpy(dark))
    for cell in range(side**2):
        row, column = np.array(divmod(cell, side)) * 32 // side
        bright = dark.copy()
        bright[0, 0, row : row + 32 // side, column : column + 32 // side] = 255
        change = (policy.backbone.embed_images(torch.from_numpy(bright)) - tokens)[0, 0]
        assert change.norm(dim=-1).argmax() == cell  # the others see it through attention


def test_recorded_keys_and_values_equal_the_cache_of_transformers(source):
    policy, whole = policy_from(source), AutoModel.from_pretrained(source).eval()
    prefix = torch.randn(2, 9, 32)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 7:] = False
    context = policy.backbone(prefix, valid).context
    decoder = whole.get_decoder()
    decoder.set_attn_implementation("sdpa")
    cache = decoder(
        inputs_embeds=prefix,
        attention_mask=valid[:, None, None, :].expand(2, 1, 9, 9),
        position_ids=torch.tensor([[8, *range(8)], [6, 0, 1, 2, 3, 4, 5, 5, 5]]),  # state first
        use_cache=True,
    ).past_key_values
    for index, layer in enumerate(cache.layers):
        torch.testing.assert_close(context.keys[:, index], layer.keys)
        torch.testing.assert_close(context.values[:, index], layer.values)


def test_instructions_go_through_the_models_own_tokenizer(source, seen):
    ids, mask = policy_from(source).tokenizer.encode(seen.instruction)
    tokenizer = AutoTokenizer.from_pretrained(source)
    for row, valid, text in zip(ids, mask, seen.instruction, strict=True):
        assert row[valid].tolist() == tokenizer(text).input_ids
        assert valid.sum() < 20
        assert valid.tolist() == sorted(valid.tolist(), reverse=True)


def test_a_checkpoint_does_not_need_the_source(source, seen, tmp_path):
    copy = shutil.copytree(source, tmp_path / "source")
    policy = policy_from(copy)
    torch.nn.init.normal_(policy.backbone.image_position)
    add_lora(policy, LoRAConfig(rank=2, site="both"))
    save_policy(policy, tmp_path / "checkpoint")
    shutil.rmtree(copy)
    loaded = load_policy(tmp_path / "checkpoint").eval()
    assert loaded.config == policy.config
    ours, theirs = loaded.encode(seen), policy.encode(seen)
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.features, theirs.features)


def test_every_adapter_gets_a_gradient_where_nothing_is_insulated(source, seen):
    policy = policy_from(source)
    policy.config = replace(policy.config, insulation="none")
    add_lora(policy, LoRAConfig(rank=2, site="both"))
    context = policy.encode(seen)
    trace = policy.act(context.detach(), deterministic=False).trace
    policy.evaluate_actions(context, trace).density.log_prob().sum().backward()
    groups = trainable_parameters(policy)
    for group in ("backbone", "head"):
        assert groups[group]
        assert all(parameter.grad is not None for parameter in groups[group])


def test_the_first_text_layers_are_those_of_the_whole_model(save_vlm, seen):
    source = save_vlm("smolvlm")
    whole, part = policy_from(source).encode(seen), policy_from(source, num_layers=2).encode(seen)
    assert part.keys.shape[1] == 2
    # The state token has weights of its own, drawn anew: it is the last and seen by all.
    assert torch.equal(part.keys[:, 0, :, :-1], whole.keys[:, 0, :, :-1])


def test_images_are_resized_and_normalised_as_the_image_processor_does(other_files):
    processor = AutoImageProcessor.from_pretrained(other_files)
    smooth = np.linspace(0, 255, 48 * 48 * 3).reshape(1, 48, 48, 3).astype(np.uint8)
    transform = ImageTransform(32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = processor([smooth[0]], return_tensors="pt").pixel_values
    # PIL rounds to whole numbers of 1 / 255, which the smallest standard deviation stretches.
    torch.testing.assert_close(
        transform(torch.from_numpy(smooth)), expected, rtol=0.0, atol=1.5 / 255 / 0.2
    )


def test_images_of_the_right_size_are_only_normalised():
    transform = ImageTransform(2, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 1.0))
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    # (0 - 0.5) / 0.5 = -1; (0.2 - 0.5) / 0.25 = -1.2; 1.
    torch.testing.assert_close(transform(image)[0, :, 0, 0], torch.tensor([-1.0, -1.2, 1.0]))


def test_a_preset_needs_nothing_but_the_source(save_vlm, seen, tmp_path):
    preset = tmp_path / "mine.toml"
    source = save_vlm("smolvlm")
    preset.write_text(
        f'max_words = 20\nimage_size = 48\n[backbone]\nsource = "{source}"\n'
        "[head.expert]\nnum_heads = 4\n"
    )
    check_policy(build_policy(preset, embodiment=ARM).eval(), seen)


def test_a_backbone_table_without_source_has_sizes(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text('vocabulary = ["pick"]\n[backbone]\nwidth = 64\n')
    assert load_toml(PolicyConfig, preset).backbone == BackboneConfig(width=64)


def test_an_unknown_key_of_a_pretrained_backbone_names_the_nearest(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text('[backbone]\nsource = "x"\nnum_layer = 3\n')
    with pytest.raises(ConfigError, match="'num_layer' in PretrainedBackboneConfig. Did you mean"):
        load_toml(PolicyConfig, preset)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('source = "x"\nwidth = 32', "unknown key 'width' in PretrainedBackboneConfig"),
        ('sourc = "x"', "unknown key 'sourc' in PretrainedBackboneConfig. Did you mean 'source'"),
        ("widht = 32", "unknown key 'widht' in BackboneConfig. Did you mean 'width'"),
    ],
)
def test_a_key_of_the_other_kind_of_backbone_is_told(tmp_path, table, message):
    preset = tmp_path / "mine.toml"
    preset.write_text(f'vocabulary = ["pick"]\n[backbone]\n{table}\n')
    with pytest.raises(ConfigError, match=message):
        load_toml(PolicyConfig, preset)


def test_too_long_an_instruction_is_counted_in_tokens(save_vlm, seen):
    policy = policy_from(save_vlm("smolvlm"))
    long = replace(seen, instruction=("xyz" * 20,) * 2)
    with pytest.raises(SpecError, match="has 6. tokens, expected 1 to 20; shorten it or raise"):
        policy.encode(long)


def test_a_missing_source_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing': cannot be loaded. Name a vision-language"):
        policy_from(tmp_path / "nothing")


def test_weights_that_are_missing_are_not_made_up(save_vlm):
    source = save_vlm("smolvlm")
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "connector" not in name}
    save_file(kept, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"of 1 parameters are missing, first 'connector\.mod"):
        policy_from(source)


def test_weights_that_are_not_finite_are_refused(save_vlm):
    source = save_vlm("smolvlm")
    tensors = load_file(source / "model.safetensors")
    tensors["model.text_model.layers.0.self_attn.k_proj.weight"][0] = torch.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="its weights give numbers that are not finite"):
        policy_from(source)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("model.safetensors", lambda text: text[:1000], "SafetensorError"),
        ("config.json", lambda text: text.replace(b'"hidden_size": 24', b'"hidden_size": 12'), ""),
        ("preprocessor_config.json", lambda text: text.replace(b"0.2", b"0.0"), "std above 0"),
        (
            "preprocessor_config.json",
            lambda text: text.rstrip()[:-1] + b', "image_mean": 1}',
            "image_mean 1, image_std",
        ),
        ("tokenizer.json", lambda text: b"[]", ""),
    ],
)
def test_damaged_files_of_the_source_are_told_in_one_line(save_vlm, file, edit, message):
    source = save_vlm("smolvlm")
    before = (source / file).read_bytes()
    (source / file).write_bytes(edit(before))
    assert (source / file).read_bytes() != before
    with pytest.raises(ConfigError, match=f"cannot be loaded. Name .*{message}") as caught:
        policy_from(source)
    assert "\n" not in str(caught.value)


def test_damaged_files_of_a_checkpoint_are_named(save_vlm, tmp_path):
    save_policy(policy_from(save_vlm("smolvlm")), tmp_path / "checkpoint")
    (tmp_path / "checkpoint/vlm/tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="checkpoint is damaged: vlm/tokenizer.json has the"):
        load_policy(tmp_path / "checkpoint")
    (tmp_path / "checkpoint/SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="checkpoint/vlm cannot be read; copy the whole"):
        load_policy(tmp_path / "checkpoint")


def test_files_of_a_checkpoint_that_read_but_do_not_fit_are_named(save_vlm, tmp_path):
    save_policy(policy_from(save_vlm("smolvlm")), tmp_path / "checkpoint")
    file = tmp_path / "checkpoint/vlm/config.json"
    file.write_text(file.read_text().replace('"vocab_size": 300', '"vocab_size": 200'))
    write_sums(tmp_path / "checkpoint", "vlm/config.json")
    with pytest.raises(CheckpointError, match="checkpoint/vlm': its tokenizer has 2.. tokens"):
        load_policy(tmp_path / "checkpoint")


def test_settings_of_another_kind_of_model_build_nothing(save_vlm):
    source = save_vlm("smolvlm")
    text = (source / "config.json").read_text().replace('"smolvlm"', '"llama"')
    (source / "config.json").write_text(text)  # its own sizes are missing: 7 billion parameters
    with pytest.raises(ConfigError, match="'llama' is no model of images and text"):
        policy_from(source)


def test_a_tokenizer_larger_than_the_model_is_refused(save_vlm):
    with pytest.raises(ConfigError, match="tokenizer has 2.. tokens, but the model embeds 200"):
        policy_from(save_vlm("smolvlm", vocab_size=200))


def test_code_of_the_source_is_not_run(save_vlm):
    source = save_vlm("smolvlm")
    settings = json.loads((source / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}
    (source / "config.json").write_text(json.dumps(settings))
    (source / "code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        policy_from(source)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_adapters_of_the_backbone_load_where_gradients_are_off(save_vlm, seen, tmp_path, mode):
    policy = policy_from(save_vlm("smolvlm"))
    add_lora(policy, LoRAConfig(rank=2, site="both"))
    save_policy(policy, tmp_path / "checkpoint")
    with mode():
        loaded = load_policy(tmp_path / "checkpoint")
        assert torch.equal(loaded.encode(seen).keys, policy.encode(seen).keys)


def test_more_text_layers_than_there_are_are_refused(save_vlm):
    with pytest.raises(ConfigError, match="num_layers is 4, but the text model has 3"):
        policy_from(save_vlm("smolvlm"), num_layers=4)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "llava",
            {"text": {"use_sliding_window": True, "max_window_layers": 1}},
            "Qwen3Model with layers of full_attention, sliding_attention; expected",
        ),
        (
            "llava",
            {"vision_feature_select_strategy": "full"},
            "LlavaModel gives 17 tokens an image, expected a square grid",
        ),
        (
            "smolvlm",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
            "a LlamaModel does not turn the keys of each of its 3 layers as Llama does",
        ),
        ("mistral3", {}, "a Mistral3Model cannot be one. Expected a model that turns images of"),
        (
            "llava",
            {"text": {"model_type": "cohere", "logit_scale": 1.0}},
            "CohereModel does not turn the keys of each",  # it pairs neighbouring numbers
        ),
        ("qwen2_5_vl", {}, "rope_parameters .*'mrope_section'.*; expected rotary positions in one"),
        ("llama", {}, "ValueError: 'llama' is no model of images and text"),
        ("clip", {}, "its text model is a CLIPTextModel; expected a decoder with layers"),
        ("paligemma", {"text": "gemma2"}, "with layers of .*sliding_attention; expected"),
        ("paligemma", {"text": "gemma3_text"}, "with layers of .*sliding_attention; expected"),
    ],
)
def test_a_model_that_cannot_be_a_backbone_is_refused(save_vlm, family, settings, message):
    with pytest.raises(ConfigError, match=message):
        policy_from(save_vlm(family, **settings))


def test_a_checkpoint_without_the_models_files_is_incomplete(save_vlm, tmp_path):
    save_policy(policy_from(save_vlm("smolvlm")), tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint/vlm")
    with pytest.raises(CheckpointError, match=r"damaged: .*/vlm/.*json: cannot be read .No such"):
        load_policy(tmp_path / "checkpoint")
    (tmp_path / "checkpoint/SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="vlm is missing; copy the whole checkpoint"):
        load_policy(tmp_path / "checkpoint")


def test_images_without_a_fixed_size_or_known_filter_are_refused(save_vlm):
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    source = save_vlm("smolvlm")
    SiglipImageProcessorPil(resample=4).save_pretrained(source)
    with pytest.raises(ConfigError, match="resized by PIL's filter 4; expected one fixed size"):
        policy_from(source)


def test_no_text_layer_is_refused():
    with pytest.raises(ConfigError, match="num_layers = 0, expected at least 1"):
        PretrainedBackboneConfig(source="x", num_layers=0)


def test_a_vocabulary_beside_a_source_is_refused():
    with pytest.raises(ConfigError, match="vocabulary has 1 words; .* a tokenizer of its own"):
        replace(CONFIG, vocabulary=("pick",))
