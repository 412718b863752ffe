"""How large a policy will be, told from its settings before anything is built."""

from vla_crl.hardware import require_memory
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.policy import PolicyConfig
from vla_crl.models.vlm import BackboneConfig

WEIGHT_BYTES = 4
"""Of a float32."""


def num_parameters(config: PolicyConfig) -> int:
    """Return about how many parameters a policy has; of a pretrained backbone none is counted."""
    backbone = config.backbone
    if not isinstance(backbone, BackboneConfig):
        return 0
    head_dim = backbone.width // backbone.num_heads
    keys = backbone.num_kv_heads * head_dim
    vision_width = backbone.vision_width
    vision_layer = vision_width * (4 * vision_width + 2 * backbone.vision_mlp_width)
    num_patches = (config.image_size // backbone.patch_size) ** 2
    vision = backbone.num_vision_layers * vision_layer
    vision += (3 * backbone.patch_size**2 + num_patches) * vision_width
    connector = vision_width * backbone.pixel_shuffle**2 * backbone.width
    text_layer = backbone.width * (2 * backbone.width + 2 * keys + 3 * backbone.mlp_width)
    text = backbone.num_layers * text_layer + len(config.vocabulary) * backbone.width
    heads = backbone.width * (config.num_action_bins + config.value_width)
    if isinstance(expert := getattr(config.head, "expert", None), ActionExpertConfig):
        attention = 2 * expert.num_heads * head_dim + 2 * keys
        expert_layer = expert.width * (attention + 3 * expert.mlp_width)
        heads += 2 * expert.width**2 + backbone.num_layers * expert_layer
    return vision + connector + text + heads


def require_room(config: PolicyConfig, where: str) -> None:
    """Check before a policy is built that the memory has room for its weights.

    Raises:
        ConfigError: It has not.
    """
    num = num_parameters(config)
    advice = "choose smaller widths, or fewer layers"
    require_memory(num * WEIGHT_BYTES, f"{where}: a policy of about {num:,} parameters", advice)
