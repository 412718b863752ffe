"""A linear layer with low-rank adapters, of which none, one or several act."""

import re
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_crl.errors import ConfigError

NAME = re.compile(r"[\w-]+")
"""Of an adapter: a part of its tensors' names."""
MAX_MERGED_NUMBERS = 2**16
"""Of a layer's weights. In a wider one, adding up weights, and their whole gradient, would take
longer than the narrow products of the adapter, and much memory."""


class AdaptedLinear(nn.Linear):
    """A linear layer with adapters, y = (W + sum_k c_k B_k A_k) x (arXiv 2106.09685, eq. 3).

    W keeps its name and stays the parameter that it was. In a narrow layer the weights are added up
    instead of the outputs, as products of few columns and two more passes over the output would
    take most of the time. Where a gate decides, y = W x + sum_k g_k(x) c_k B_k A_k x.

    Attributes:
        name: Of the layer in its policy.
        lora_A: A_k [rank, in] by the adapter's name, float32; names of tensors are those of peft.
        lora_B: B_k [out, rank].
        acting: c_k of those that act.
        gate: From the layer's name and inputs [..., in] to g [..., K] of the adapters in `gated`.
        gated: Their names; some may have no part in this layer.
        kept: W + sum_k c_k B_k A_k, where it is known not to change.
    """

    def __init__(self, base: nn.Linear, name: str) -> None:
        """Take over the weights of `base`.

        Args:
            base: The layer without adapters.
            name: Of the layer in its policy.
        """
        nn.Module.__init__(self)  # that of nn.Linear would draw weights
        self.in_features, self.out_features = base.in_features, base.out_features
        self.name, self.weight = name, base.weight
        self.register_parameter("bias", base.bias)
        self.train(base.training)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.acting: Mapping[str, float] = {}
        self.gate: Callable[[str, Tensor], Tensor] | None = None
        self.gated: tuple[str, ...] = ()
        self.kept: Tensor | None = None

    def base(self) -> nn.Linear:
        """Return the layer as it was before it had adapters."""
        with torch.device("meta"):
            layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = self.weight
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def add(self, name: str, rank: int) -> None:
        """Add an adapter with B = 0; its numbers are drawn on the CPU, as peft draws them."""
        down = nn.Linear(self.in_features, rank, bias=False)
        up = nn.Linear(rank, self.out_features, bias=False)
        down.reset_parameters()  # A once more, after B: equal seeds give the numbers of peft
        nn.init.zeros_(up.weight)
        self.lora_A[name], self.lora_B[name] = (part.to(self.weight.device) for part in (down, up))

    def remove(self, name: str) -> None:
        """Take an adapter away."""
        del self.lora_A[name], self.lora_B[name]

    def matrices(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A [rank, in] and B [out, rank] of an adapter."""
        down, up = (cast(nn.Parameter, part[name].weight) for part in (self.lora_A, self.lora_B))
        return down, up

    def set_acting(
        self,
        acting: Mapping[str, float],
        gate: Callable[[str, Tensor], Tensor] | None = None,
        gated: tuple[str, ...] = (),
    ) -> None:
        """Choose what acts.

        Args:
            acting: See above; names without a part in this layer are left out.
            gate: See above.
            gated: See above.
        """
        self.acting = {name: scale for name, scale in acting.items() if name in self.lora_A}
        self.gate, self.gated = (gate, gated) if self.acting else (None, ())
        self.kept = None

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if not self.acting:
            return functional.linear(input, self.weight, self.bias)
        # A sum rounded to bfloat16 would lose the adapter.
        is_exact = input.dtype == torch.float32 and not torch.is_autocast_enabled(input.device.type)
        if is_exact and self.kept is not None:
            return functional.linear(input, self.kept, self.bias)
        if is_exact and self.is_merged:
            return functional.linear(input, self.merged_weight(), self.bias)
        output = functional.linear(input, self.weight, self.bias)
        dtype, gates = output.dtype, self._gates(input)
        for name, scale in self.acting.items():
            down, up = self.lora_A[name], self.lora_B[name]
            update = up(down(input.to(self.matrices(name)[0].dtype))) * scale
            output = output + (update if gates is None else gates[name] * update)
        return output.to(dtype)

    @property
    def is_merged(self) -> bool:
        """Whether it is a layer for which adding up the weights pays."""
        is_narrow = self.weight.numel() <= MAX_MERGED_NUMBERS
        return is_narrow and self.weight.dtype == torch.float32 and self.gate is None

    def merged_weight(self) -> Tensor:
        """Return W + sum_k c_k B_k A_k, [out, in]."""
        weight: Tensor = self.weight
        for name, scale in self.acting.items():
            down, up = self.matrices(name)
            weight = torch.addmm(weight, up, down, alpha=scale)
        return weight

    def keep(self) -> None:
        """Add up the weights, once until `kept` is None again."""
        if self.is_merged and self.acting:
            with torch.no_grad():
                self.kept = self.merged_weight()

    def _gates(self, x: Tensor) -> dict[str, Tensor] | None:
        """Return what each adapter's output is multiplied by, [..., 1]."""
        if self.gate is None:
            return None
        gates = self.gate(self.name, x).split(1, dim=-1)
        return dict(zip(self.gated, gates, strict=True))


def check_adapter_name(name: str) -> None:
    """Check that tensors can have a name in theirs.

    Raises:
        ConfigError: They cannot.
    """
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        raise ConfigError(
            f"adapter '{name}': expected a name of letters, digits, '_' and '-' that is no "
            "attribute of torch.nn.ModuleDict; choose another"
        )
