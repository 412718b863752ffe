"""Which part of a policy a parameter belongs to, and which layers adapters are for.

All that the package knows of the names of a policy's modules is in the tables here.
"""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.hardware import require_memory
from vla_crl.models.adapted_linear import AdaptedLinear
from vla_crl.models.gradient_paths import reached
from vla_crl.models.lora import AdapterLayout, LoRAConfig

if TYPE_CHECKING:
    from vla_crl.models.policy import VLAPolicy

Group = Literal["backbone", "auxiliary", "head", "value", "router"]

GROUP_OF_MODULE: dict[str, Group] = {
    "backbone": "backbone",
    "state_in": "backbone",
    "token_heads": "auxiliary",
    "grounding": "auxiliary",
    "head": "head",
    "value_head": "value",
    "adapters": "router",
}
"""By the beginning of a parameter's name; of several the longest counts."""
BACKBONE, HEAD, EXPERT = "backbone.", "head.", "head.expert."
"""Beginnings of the names of layers that can have adapters."""
ADAPTED = (".lora_A.", ".lora_B.")
"""In the names of an adapter's matrices, behind the layer's and before the adapter's own."""
LIGHT_MODULES = ("value_head.", "adapters.")
"""What every stage trains and stores beside the adapters: value head and router."""
TRAINED_BYTES = 16
"""For each trained number itself, its gradient and two averages of Adam's, float32."""
NUM_NEAREST = 3


def site_of(name: str) -> Group:
    """Return the part of the policy that a parameter belongs to, an adapter's to its layer's.

    Raises:
        ConfigError: It is in a module that is no part of a policy.
    """
    fitting = [start for start in GROUP_OF_MODULE if f"{name}.".startswith(f"{start}.")]
    if not fitting:
        raise ConfigError(
            f"'{name}' belongs to no part of a policy, expected a name that begins with one of "
            f"{', '.join(GROUP_OF_MODULE)}; add modules to a policy as its router"
        )
    return GROUP_OF_MODULE[max(fitting, key=len)]


def is_adapter(name: str) -> bool:
    """Tell whether a parameter is a matrix of an adapter."""
    return any(part in name for part in ADAPTED)


def light_names(policy: "VLAPolicy") -> set[str]:
    """Return the names of all tensors that are no weights of the base.

    They are those of adapters, router, value head and of what the head learns to explore with: what
    is trained and stored in every stage.
    """
    starts = _light_starts(policy)
    return {n for n in policy.state_dict() if is_adapter(n) or n.startswith(starts)}


def exploration_names(policy: "VLAPolicy") -> list[str]:
    """Return the names of the parameters that the head learns to explore with."""
    starts = policy.learnt_exploration
    return [name for name, _ in policy.named_parameters() if name.startswith(starts)]


def _light_starts(policy: "VLAPolicy") -> tuple[str, ...]:
    return LIGHT_MODULES + policy.learnt_exploration


def linear_layers(policy: "VLAPolicy") -> dict[str, nn.Linear]:
    """Return all layers that can have adapters, in the policy's order."""
    modules, light = dict(policy.named_modules()), _light_starts(policy)
    return {
        name: cast(nn.Linear, module)
        for name, module in modules.items()
        if type(module) in (nn.Linear, AdaptedLinear)
        and not (is_adapter(f"{name}.") or name.startswith(light))
    }


def choose_layers(policy: "VLAPolicy", config: LoRAConfig) -> AdapterLayout:
    """Return what adapters of these settings are in a policy.

    Of the layers that a site names, those remain on which actions depend. The last text layer's
    queries and MLP, for one, may reach neither keys nor values, and an adapter there would never
    get a gradient.

    Raises:
        ConfigError: A pattern fits no layer, or no layer remains.
    """
    layers = linear_layers(policy)
    names = _at_site(config.site, list(layers))
    other = [name for name in names if not name.startswith(EXPERT)]
    if other:
        weights = [layers[name].weight for name in other]
        found = dict(zip(other, reached(policy, weights, insulation="none"), strict=True))
        names = [name for name in names if found.get(name, True)]
    if not names:
        raise ConfigError(
            f"lora.site is {_told(config.site)}, but actions depend on none of its "
            f"{len(other)} layers; choose another site"
        )
    ranks = {name: _rank(config, name) for name in names}
    for pattern in config.ranks:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise _no_fit("lora.ranks", pattern, names)
    return AdapterLayout(scale=config.alpha / config.rank, ranks=ranks)


def adapt_layers(policy: "VLAPolicy", name: str, layout: AdapterLayout) -> list[AdaptedLinear]:
    """Make the layers of a layout ready to take an adapter, and return them in the policy's order.

    Raises:
        ConfigError: One is not there, or there is no room for the adapter.
    """
    layers = linear_layers(policy)
    for layer in layout.ranks:
        if layer not in layers:
            raise unknown_name(f"adapter '{name}'", "layer", layer, layers)
    edges = sum(
        rank * (layers[layer].in_features + layers[layer].out_features)
        for layer, rank in layout.ranks.items()
    )
    what, advice = f"adapter '{name}' of {layout}", "choose a smaller lora.rank"
    require_memory(TRAINED_BYTES * edges, what, advice, policy.device.type)
    chosen = {layer: layers[layer] for layer in layers if layer in layout.ranks}
    for layer, found in chosen.items():
        if not isinstance(found, AdaptedLinear):
            replace_layer(policy, layer, AdaptedLinear(found, layer))
    return [cast(AdaptedLinear, policy.get_submodule(layer)) for layer in chosen]


def replace_layer(policy: "VLAPolicy", name: str, layer: nn.Linear) -> None:
    """Put a layer in the place of the one of that name."""
    place, _, attribute = name.rpartition(".")
    setattr(policy.get_submodule(place), attribute, layer)


def _at_site(site: str | tuple[str, ...], layers: Sequence[str]) -> list[str]:
    """Return the names of the layers at a site, in their order."""
    if isinstance(site, tuple):
        return _fitting(site, layers)
    expert = [name for name in layers if name.startswith(EXPERT)]
    if site == "action_expert" and not expert:
        raise ConfigError(
            "lora.site is 'action_expert', but the policy's head has none; choose 'backbone', or "
            "'head' for whatever computes the actions"
        )
    is_head = site in ("head", "action_expert") and bool(expert)
    starts = EXPERT if is_head else (BACKBONE, HEAD) if site == "both" else BACKBONE
    return [name for name in layers if name.startswith(starts)]


def _fitting(patterns: Sequence[str], layers: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise _no_fit("lora.site", pattern, layers)
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _no_fit(setting: str, pattern: str, layers: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(pattern, layers, n=NUM_NEAREST, cutoff=0.3)
    near = near or list(layers[:NUM_NEAREST])
    return ConfigError(
        f"{setting}: pattern '{pattern}' fits none of the {len(layers)} layers; near it are "
        f"{', '.join(near)}"
    )


def _rank(config: LoRAConfig, layer: str) -> int:
    own = (rank for pattern, rank in config.ranks.items() if fnmatchcase(layer, pattern))
    return next(own, config.rank)


def _told(site: str | tuple[str, ...]) -> str:
    return f"'{site}'" if isinstance(site, str) else str(list(site))
