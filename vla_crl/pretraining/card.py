"""What the card of a base policy says in words."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_crl.pretraining.recipe import EXPERT
from vla_crl.rounding import percentage


def card_markdown(card: Mapping[str, Any]) -> str:
    """Tell in words what the card of a checkpoint says."""
    success = card["success_on_test_ids"]
    rows = [f"| `{task}` | {percentage(rate)} % |" for task, rate in success.items()]
    sources = dict.fromkeys(task.rpartition(".")[0] for task in success)
    for source in sources if len(sources) > 1 else ():
        rates = [rate for task, rate in success.items() if task.rpartition(".")[0] == source]
        rows.append(f"| all of `{source}` | {percentage(float(np.mean(rates)))} % |")
    lines = [
        f"# Base policy for `{card['suite']}`",
        "",
        f"{card['num_parameters']:,} parameters, trained on {card['samples']:,} samples of "
        f"{' and '.join(_demonstrations(card))} "
        f"(together {card['wall_s'] / 60:.0f} minutes on {card['hardware']}).",
        *_beginning(card),
        "",
        f"Success on the first {card['episodes_per_task']} test states of each task, deterministic "
        f"actions; {percentage(card['mean_success'])} % on average:",
        "",
        "| task | success |",
        "| --- | --- |",
        *rows,
        "",
        f"Made by `vla-crl pretrain {card['recipe']}`, which writes this page too.",
        "",
    ]
    return "\n".join(lines)


def _demonstrations(card: Mapping[str, Any]) -> Iterator[str]:
    for origin, num in card["demonstrations"].items():
        scripted = origin == EXPERT
        of = "perturbed scripted demonstrations" if scripted else "demonstrations of"
        yield f"{num:,} {of}" + ("" if scripted else f" `{Path(origin).name}`")


def _beginning(card: Mapping[str, Any]) -> Iterator[str]:
    """Tell from which weights training went on, if not from random ones."""
    if card["initial_weights"] != "random":
        yield ""
        yield (
            f"Training went on from `{card['policy']}` (weights {card['initial_weights']}), with "
            f"the normalisation of the {card['norm_stats']}."
        )
    if card["new_words"]:
        yield ""
        yield f"New words: {', '.join(f'`{word}`' for word in card['new_words'])}."
