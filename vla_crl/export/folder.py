"""A policy in a folder that stands alone: to be shared, published, or run by torch."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vla_crl.errors import ConfigError
from vla_crl.export import example
from vla_crl.export.card import card_text
from vla_crl.export.measured import read_measured
from vla_crl.export.programs import Act, Encode, example_inputs, export_programs, measure_latency
from vla_crl.files.checksums import write_sums
from vla_crl.models.checkpoint import save_policy
from vla_crl.models.merging import merge_adapters
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.tokenizer import WordTokenizer

OWN_LICENSE = "apache-2.0"
"""Of a policy whose weights began at random in this package."""
NUM_COMPARED = 64
"""Observations on which a merged policy is compared with what it was."""


def export_policy(
    policy: VLAPolicy,
    source: str,
    folder: Path,
    *,
    name: str,
    merge: bool = False,
    torch_export: bool = False,
    license_id: str | None = None,
) -> list[dict[str, Any]]:
    """Write a policy, its page and, if wanted, its programs.

    Args:
        policy: In float32; with `merge` it has no adapters afterwards.
        source: What it was loaded from, which tells its success.
        folder: Has to be there and be empty.
        name: Of the policy, for the page.
        merge: Fold its adapters into the base.
        torch_export: Make programs of `torch.export` and measure their latency.
        license_id: As the Hugging Face hub spells it. None: that of this package, where no
            pretrained backbone brings another.

    Returns:
        The latencies, see `measure_latency`.

    Raises:
        ConfigError: It cannot be merged or exported, or the licence is missing.
    """
    if license_id is None and policy.backbone.vlm.is_pretrained:
        raise ConfigError(
            f"policy '{source}' has a pretrained backbone, whose licence is its makers'; name "
            "the one under which you share this, e.g. --license apache-2.0"
        )
    if torch_export:
        _require_one_program(policy, source)
    measured, notes = read_measured(source), [_kept_apart(policy)]
    if merge:
        notes = [_merged(policy, source)]
    save_policy(policy, folder, {"measured": dataclasses.asdict(measured)})
    files, latency = [], []
    if isinstance(policy.tokenizer, WordTokenizer):
        files.append("tokenizer.json")
        policy.tokenizer.save(folder / files[-1])
    if torch_export:
        policy.requires_grad_(requires_grad=False)  # nor would what the programs return
        programs = export_programs(policy)
        latency = measure_latency(policy, programs)
        files += programs.save(folder)
        if isinstance(policy.tokenizer, WordTokenizer):
            files.append("example.py")
            shutil.copyfile(example.__file__, folder / files[-1])
        notes.append(f"Actions of the programs differ from its own by {programs.difference:.0e}.")
    write_sums(folder, *files)  # not of the page, which is there to be edited
    page = card_text(
        name,
        policy,
        measured,
        license_id=license_id or OWN_LICENSE,
        notes=[*filter(None, notes)],
        latency=latency,
    )
    (folder / "README.md").write_text(page, encoding="utf-8")
    return latency


def _kept_apart(policy: VLAPolicy) -> str:
    bank = policy.adapters
    if not bank.names:
        return ""
    chosen = "" if bank.route.kind == "fixed" else f", chosen by {bank.route.kind}"
    return f"Its LoRA adapters, {bank.record()}{chosen}, are kept apart from the base."


def _merged(policy: VLAPolicy, source: str) -> str:
    """Merge adapters and tell in a sentence how much that has changed."""
    if not policy.adapters.names:
        raise ConfigError(f"policy '{source}' has no adapters to be merged; leave out --merge")
    told, actions = str(policy.adapters.record()), _actions_of(policy)
    before = actions()
    try:
        merge_adapters(policy)
    except ConfigError as error:
        raise ConfigError(f"policy '{source}': {error}") from error
    difference = float((actions() - before).abs().max())
    return (
        f"Its LoRA adapters, {told}, are merged into the base; on {NUM_COMPARED} random "
        f"observations actions, in [-1, 1], differ from those before by {difference:.0e} at most."
    )


def _require_one_program(policy: VLAPolicy, source: str) -> None:
    """Check that the policy acts alike in all tasks, as a program does."""
    if policy.adapters.route.kind == "task":
        raise ConfigError(
            f"policy '{source}': its adapters are chosen by task, which no program of "
            "torch.export is told; leave out --torch-export"
        )


def _actions_of(policy: VLAPolicy) -> Callable[[], torch.Tensor]:
    """Return a function that acts on the same random observations every time."""
    seen = example_inputs(policy, NUM_COMPARED)
    start = seen["act"][-1]

    @torch.no_grad()
    def actions() -> torch.Tensor:
        return Act(policy)(*Encode(policy)(*seen["encode"]), start)[0]

    return actions
