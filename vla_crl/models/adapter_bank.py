"""All adapters of a policy by name, and the rule that says which of them act.

    bank = policy.adapters
    bank.add("open_drawer", LoRAConfig(rank=8))           # B = 0: nothing changes yet
    bank.activate({"open_drawer": 1.0}, train=("open_drawer",))
    bank.route = TaskRoute(tasks={"open_drawer": {"open_drawer": 1.0}}, default={})
    with bank.routed("press_button"): ...                 # what the route says; here none
    bank.snapshot("teacher")                              # a frozen copy of what acts
    with bank.acting({"teacher": 1.0}): ...               # the teacher, {} being none
    with bank.as_base(): ...                              # the policy before it had adapters

What acts is a state of the policy, which threads share: it is changed between their batches.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from torch import nn

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.models.adapted_linear import AdaptedLinear, check_adapter_name
from vla_crl.models.adapter_sums import Matrices, joined, norm_of
from vla_crl.models.earlier_weights import BaseExploration, exchanged
from vla_crl.models.lora import AdapterLayout, LoRAConfig
from vla_crl.models.router import Router, make_router
from vla_crl.models.routes import BankRecord, FixedRoute, Route, RouterRoute, TaskRoute
from vla_crl.models.sites import adapt_layers, choose_layers, linear_layers, replace_layer

if TYPE_CHECKING:
    from vla_crl.models.policy import VLAPolicy


class AdapterBank(nn.Module):
    """The adapters of a policy; empty at first.

    Matrices lie in the policy's layers, `<layer>.lora_A.<name>.weight` [rank, in] and
    `<layer>.lora_B.<name>.weight` [out, rank], float32 whatever the layers are: Adam's small steps
    would be lost in bfloat16. An adapter begins with B = 0. Other initialisations (PiSSA, OLoRA)
    change the base weights, and with them every comparison with the base policy.

    Attributes:
        router: Module that weighs adapters, if the route is one.
        base_exploration: What the head explored with before there were adapters.
    """

    router: Router | None
    _policy: "VLAPolicy"

    def __init__(self, policy: "VLAPolicy") -> None:
        """Begin without adapters.

        Args:
            policy: Whose they are.
        """
        super().__init__()
        object.__setattr__(self, "_policy", policy)  # not as a module: it is the one above
        self._layouts: dict[str, AdapterLayout] = {}
        self._scales: dict[str, float] = {}
        self._route: Route = FixedRoute()
        self._override: dict[str, float] | None = None
        self.router = None
        self.base_exploration = BaseExploration()

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters, in the order in which they were added."""
        return tuple(self._layouts)

    @property
    def layouts(self) -> Mapping[str, AdapterLayout]:
        """What each adapter is but for its numbers; `add` takes one for another adapter like it."""
        return dict(self._layouts)

    @property
    def scales(self) -> dict[str, float]:
        """What acts now, and what each update is multiplied by besides alpha / rank."""
        if self._override is not None:
            return dict(self._override)
        if isinstance(self._route, RouterRoute):
            return dict.fromkeys(self._route.names, 1.0)
        return dict(self._scales)

    def matrices(self, name: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Return A [rank, in] and B [out, rank] of an adapter, by layer.

        Raises:
            ConfigError: There is no such adapter.
        """
        self._require([name], "matrices")
        return {layer: self._layer(layer).matrices(name) for layer in self._layouts[name].ranks}

    def norms(self) -> dict[str, float]:
        """Return the Frobenius norm of each adapter's whole update, alpha / rank included."""
        return {
            name: layout.scale * norm_of(self._detached(name))
            for name, layout in self._layouts.items()
        }

    def add(self, name: str, config: LoRAConfig | AdapterLayout, *, trained: bool = True) -> None:
        """Add an adapter that leaves the policy's output unchanged.

        Args:
            name: Letters, digits, "_" and "-".
            config: Its settings, or the layout of another one.
            trained: Whether it acts, beside those that act, and is trained; else it does neither.

        Raises:
            ConfigError: The name is taken or none, the layers are not there, or there is no room.
        """
        check_adapter_name(name)
        if name in self._layouts:
            raise ConfigError(
                f"adapter '{name}': there is one of that name, of {self._layouts[name]}; choose "
                "another name, or remove it first"
            )
        if isinstance(config, LoRAConfig):
            config = choose_layers(self._policy, config)
        if not self._layouts:
            self.base_exploration.remember(self._policy)
        for layer in adapt_layers(self._policy, name, config):
            layer.add(name, config.ranks[layer.name])
            for matrix in layer.matrices(name):
                matrix.requires_grad_(trained)
        self._layouts[name] = config
        if trained:
            self._scales[name] = 1.0
        self._push()

    def remove(self, name: str) -> None:
        """Take an adapter away, whether it acts or not; the base is as it was.

        Raises:
            ConfigError: There is none of that name, or the route needs it.
        """
        self._require([name], "remove")
        if name in self._route.names:
            raise ConfigError(
                f"adapter '{name}': the route by {self._route.kind} needs it; set another route "
                "before it is removed"
            )
        if name in (self._override or {}):
            raise ConfigError(f"adapter '{name}': acts in a block of acting; remove it behind it")
        for layer in self._layouts.pop(name).ranks:
            adapted = self._layer(layer)
            adapted.remove(name)
            if not adapted.lora_A:
                replace_layer(self._policy, layer, adapted.base())
        if not self._layouts:
            self.base_exploration.forget()
        self._scales.pop(name, None)
        self._push()

    def activate(self, scales: Mapping[str, float], train: Collection[str] | None = None) -> None:
        """Choose what acts where the route does not choose, and what is trained.

        Args:
            scales: Adapters, and what the update of each is multiplied by besides alpha / rank.
            train: Adapters that are trained from now on; all others are frozen. None leaves it as
                it is.

        Raises:
            ConfigError: An unknown adapter, a scale that is no number, or one that is to be trained
                and does not act.
        """
        checked = self._checked(scales, "activate")
        self._require(train or (), "activate")
        acts = self._route.names if isinstance(self._route, RouterRoute) else checked
        for name in train or ():
            if name not in acts:
                raise ConfigError(
                    f"activate: '{name}' is to be trained but does not act, so no gradient would "
                    f"reach it; give it a scale beside {dict(checked)}"
                )
        self._scales = checked
        if train is not None:
            self.train_only(train)
        self._push()

    def train_only(self, names: Collection[str]) -> None:
        """Train the matrices of some adapters and freeze those of all others.

        Raises:
            ConfigError: An unknown adapter.
        """
        self._require(names, "train_only")
        for name in self.names:
            for pair in self.matrices(name).values():
                for matrix in pair:
                    matrix.requires_grad_(name in names)

    @contextmanager
    def acting(self, scales: Mapping[str, float]) -> Iterator[None]:
        """Let these adapters act inside the block whatever the route says, {} being none.

        Of the model nothing is copied, and what is trained stays as it is.

        Raises:
            ConfigError: An unknown adapter, or a scale that is no number.
        """
        before, self._override = self._override, self._checked(scales, "acting")
        self._push()
        try:
            yield
        finally:
            self._override = before
            self._push()

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Let the policy act inside the block as before it had adapters.

        None acts, and what the head has learnt to explore with is as it was then.
        """
        with self.acting({}), exchanged(self._policy, self.base_exploration.weights):
            yield

    @property
    def route(self) -> Route:
        """The rule that says what acts in which task."""
        return self._route

    @route.setter
    def route(self, route: Route) -> None:
        """Set the rule; a router begins anew.

        Raises:
            ConfigError: It names an adapter that is not there, or a router that cannot be built.
        """
        self._require(route.names, "route")
        router = None
        if isinstance(route, RouterRoute):
            layers = dict.fromkeys(layer for n in route.names for layer in self._layouts[n].ranks)
            widths = {layer: self._layer(layer).in_features for layer in layers}
            router = make_router(route, widths).to(self._policy.device)
        self._route, self.router = route, router
        self._push()

    def route_of(self, task: str) -> dict[str, float]:
        """Return what acts in a task, and how strongly; a router then weighs it.

        Raises:
            ConfigError: The route is by task and says nothing of this one.
        """
        return dict(self._route.of(task)) if isinstance(self._route, TaskRoute) else self.scales

    @contextmanager
    def routed(self, task: str) -> Iterator[None]:
        """Let act inside the block what the route says of a task.

        Raises:
            ConfigError: It says nothing.
        """
        if not isinstance(self._route, TaskRoute):
            yield
            return
        with self.acting(self.route_of(task)):
            yield

    def merge(
        self, names: Sequence[str], into: str, weights: Mapping[str, float] | None = None
    ) -> None:
        """Make one frozen adapter whose update is the weighted sum of several.

        Ranks add up, see `joined`: of the sum nothing is lost.

        Args:
            names: Adapters, each once.
            into: Name of the new one, also one of theirs; what had it is replaced, and if it acted
                the new one does.
            weights: w, of each; 1 where it is left out.

        Raises:
            ConfigError: An unknown adapter, one that is there twice, none, or a wrong weight.
        """
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"merge: names are {list(names)}, expected at least one, each once")
        self._require(names, "merge")
        for name in weights or {}:
            if name not in names:
                raise unknown_name("merge", "weight", name, names)
        factors = self._checked({n: (weights or {}).get(n, 1.0) for n in names}, "merge")
        scale = self._layouts[names[0]].scale
        parts = [
            (factors[name] * (self._layouts[name].scale / scale), self._detached(name))
            for name in names
        ]
        matrices = joined(parts, linear_layers(self._policy))
        ranks = {layer: len(down) for layer, (down, _) in matrices.items()}
        self._put(into, AdapterLayout(scale=scale, ranks=ranks), matrices)

    def snapshot(self, name: str) -> None:
        """Keep the sum of what acts now as one frozen adapter, which does not act.

        Args:
            name: Of the copy; an older one of that name is replaced.

        Raises:
            ConfigError: Nothing acts (that is `acting({})`), a router decides, or `name` acts.
        """
        scales = self.scales
        if not scales:
            raise ConfigError(
                f"snapshot '{name}': no adapter acts, which is the base policy; use acting({{}})"
            )
        if self._is_gated:
            raise ConfigError(
                f"snapshot '{name}': a router weighs the adapters {', '.join(scales)} anew for "
                "every input, which no single adapter does; merge some of them"
            )
        if name in scales:
            raise ConfigError(f"snapshot '{name}': that adapter acts; choose another name")
        self.merge(tuple(scales), name, scales)

    def record(self) -> BankRecord:
        """Return all of it but the numbers."""
        layouts, acting = dict(self._layouts), dict(self._scales)
        return BankRecord(layouts=layouts, acting=acting, route=self._route)

    def arrange(self, record: BankRecord) -> None:
        """Become as a record says; the numbers, which are not in it, are for the caller to write.

        What acts is trained, all other adapters are frozen.

        Raises:
            ConfigError: It does not fit the policy or itself.
        """
        self.route = FixedRoute()
        for name, layout in self._layouts.copy().items():
            if record.layouts.get(name) != layout:
                self.remove(name)
        for name, layout in record.layouts.items():
            if name not in self._layouts:
                self.add(name, layout, trained=False)
        self._layouts = {name: self._layouts[name] for name in record.layouts}
        self.activate(record.acting)
        self.route = record.route
        self.train_only(self.scales)

    def clear(self) -> None:
        """Take all adapters away, and with them the route."""
        self.route = FixedRoute()
        for name in self.names:
            self.remove(name)

    @property
    def _is_gated(self) -> bool:
        return self.router is not None and self._override is None

    def _push(self) -> None:
        """Tell the layers what acts."""
        scales = {name: c * self._layouts[name].scale for name, c in self.scales.items()}
        for layer in self._adapted():
            if self.router is not None and self._is_gated:
                layer.set_acting(scales, self.router.__call__, self._route.names)
            else:
                layer.set_acting(scales)

    def _put(self, name: str, layout: AdapterLayout, matrices: Matrices) -> None:
        """Write an adapter with these matrices in the place of what has its name, frozen."""
        route, scales = self._route, dict(self._scales)
        if self._layouts.get(name) != layout:
            if name in self._layouts:
                if isinstance(route, RouterRoute) and name in route.names:
                    raise ConfigError(
                        f"merge: '{name}' is weighed by the router, and of another layout than "
                        "the sum; choose another name"
                    )
                self._route = FixedRoute()
                self.remove(name)
            self.add(name, layout, trained=False)
            self._route, self._scales = route, scales
            self._push()
        for layer, pair in self.matrices(name).items():
            for matrix, numbers in zip(pair, matrices[layer], strict=True):
                matrix.requires_grad_(False)
                matrix.data.copy_(numbers)

    def _checked(self, scales: Mapping[str, float], where: str) -> dict[str, float]:
        self._require(scales, where)
        for name, scale in scales.items():
            if not math.isfinite(scale):
                raise ConfigError(f"{where}: scale of '{name}' is {scale}, expected a number")
        return {name: float(scale) for name, scale in scales.items()}

    def _require(self, names: Collection[str], where: str) -> None:
        for name in names:
            if name not in self._layouts:
                raise unknown_name(f"adapters: {where}", "adapter", name, self._layouts)

    def _detached(self, name: str) -> Matrices:
        return {n: (a.detach(), b.detach()) for n, (a, b) in self.matrices(name).items()}

    def _layer(self, name: str) -> AdaptedLinear:
        return cast(AdaptedLinear, self._policy.get_submodule(name))

    def _adapted(self) -> list[AdaptedLinear]:
        layers = dict.fromkeys(layer for layout in self._layouts.values() for layer in layout.ranks)
        return [self._layer(layer) for layer in layers]
