"""The page of an exported policy, `README.md`, as the Hugging Face hub reads it.

Its front matter is data: licence, tags, and success as a `model-index`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from vla_crl.export.measured import Measured, TaskSuccess
from vla_crl.hardware import hardware_name
from vla_crl.models.heads.bins import BinConfig
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.heads.head import HeadConfig
from vla_crl.models.heads.noise import NoiseConfig
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.routes import TaskRoute
from vla_crl.rounding import percentage

LIBRARY = "vla-crl"
SPLITS = {"train": "trained", "heldout": "never trained", "base": "of the suite"}
"""What a task was to the policy, in words; which ones the data of a base policy demonstrated its
card does not say."""


def card_text(
    name: str,
    policy: VLAPolicy,
    measured: Measured,
    *,
    license_id: str,
    notes: Sequence[str],
    latency: Sequence[dict[str, Any]],
) -> str:
    """Return the page.

    Args:
        name: Of the policy.
        policy: As it was exported.
        measured: What is known of its success.
        license_id: As the hub spells it, e.g. apache-2.0.
        notes: What was done in exporting, a sentence each.
        latency: Rows of `measure_latency`; none where no programs were made.
    """
    parts = [
        f"---\n{front_matter(name, policy, measured, license_id)}---\n",
        f"# {name}\n",
        _what(policy, measured, notes),
        _success(measured),
        _use(policy, has_programs=bool(latency)),
        _latency(latency) if latency else "",
        "Trained and measured in simulation alone.\n",
    ]
    return "\n".join(filter(None, parts))


def front_matter(name: str, policy: VLAPolicy, measured: Measured, license_id: str) -> str:
    """Return the data of the page as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="robotics",
            dataset_type=measured.suite,
            dataset_name=f"{measured.suite}: tasks {SPLITS[split]}",
            metric_type="success_rate",
            metric_name="mean success on test states",
            metric_value=round(measured.mean(tasks), 4),
        )
        for split, tasks in _by_split(measured)
    ]
    data = ModelCardData(
        license=license_id,
        library_name=LIBRARY,
        pipeline_tag="robotics",
        tags=_tags(policy),
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml() + "\n"


def _tags(policy: VLAPolicy) -> list[str]:
    tags = ["robotics", "vision-language-action", "continual-learning"]
    tags += ["flow-matching"] * isinstance(policy.config.head, FlowConfig | NoiseConfig)
    return [*tags, "lora"] if policy.adapters.names else tags


def _by_split(measured: Measured) -> list[tuple[str, list[TaskSuccess]]]:
    splits = dict.fromkeys(task.split for task in measured.tasks)
    return [(s, [task for task in measured.tasks if task.split == s]) for s in splits]


def _what(policy: VLAPolicy, measured: Measured, notes: Sequence[str]) -> str:
    config, robot = policy.config, policy.embodiment
    num = sum(parameter.numel() for parameter in policy.parameters())
    facts = (
        ("parameters", f"{num:,}"),
        ("cameras", f"{', '.join(robot.cameras)}: {config.image_size} x {config.image_size} RGB"),
        ("state", ", ".join(robot.state)),
        ("action", f"{', '.join(robot.action)}, each in [-1, 1]"),
        ("chunk", f"{config.action_horizon} actions, {config.execution_horizon} are executed"),
        ("action head", _head(config.head)),
    )
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts)
    text = " ".join([measured.origin, *notes])
    return (
        "A vision-language-action policy for a simulated robot: images, state and an instruction "
        f"in, a chunk of actions out. {text}\n\n| | |\n| --- | --- |\n{rows}\n"
    )


def _head(config: HeadConfig) -> str:
    if isinstance(config, FlowConfig | NoiseConfig):
        return f"{config.kind}, {config.num_steps} steps from {config.initial_noise} noise"
    if isinstance(config, BinConfig):
        return f"{config.kind}, one of {config.num_bins} bins for every number"
    return config.kind


def _success(measured: Measured) -> str:
    if not measured.tasks:
        return ""
    rows = [
        f"| `{task.task}` | {SPLITS[task.split]} | {percentage(task.rate)} % of {task.episodes} |"
        for task in measured.tasks
    ]
    means = [
        f"{percentage(measured.mean(tasks))} % on average over {len(tasks)} tasks {SPLITS[split]}"
        for split, tasks in _by_split(measured)
    ]
    where = f" on {measured.hardware}" if measured.hardware else ""
    return (
        f"## Success\n\nOn test states of `{measured.suite}`, actions without exploration noise"
        f"{where}: {'; '.join(means)}.\n\n| task | | success |\n| --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
    )


def _use(policy: VLAPolicy, *, has_programs: bool) -> str:
    route, has_words = policy.adapters.route, bool(policy.config.vocabulary)
    act = "chunk = policy.act(policy.encode(observation), deterministic=True)"
    if isinstance(route, TaskRoute):  # as what is told above was measured
        task = next(iter(route.tasks), "TASK")
        act = f'with policy.adapters.routed("{task}"):  # or another task\n    {act}'
    text = (
        "## Use\n\n```\nvla-crl evaluate --policy THIS_FOLDER --suite SUITE\n```\n\n"
        "```python\nfrom vla_crl.models.checkpoint import load_policy\n\n"
        f'policy = load_policy("THIS_FOLDER")\n{act}\n```\n\n'
        "`policy.json` is the architecture, `model.safetensors` the weights, "
        + ("`tokenizer.json` the words, " if has_words else "`vlm/` tokenizer and pictures, ")
        + "`SHA256SUMS` checks them.\n"
    )
    if has_programs:
        text += (
            "\nWithout the package: `encode.pt2`, `act.pt2` and `sample.pt2` are programs of "
            "`torch.export` and need torch alone"
            + ("; `python example.py` acts once.\n" if has_words else ".\n")
        )
    return text


def _latency(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| {row['program']} | {row['batch']} | {row['eager_ms']:.1f} | {row['exported_ms']:.1f} |"
        for row in rows
    ]
    threads = torch.get_num_threads()
    return (
        f"## Latency\n\nMilliseconds a call, median, float32 on {hardware_name()}, {threads} "
        f"thread{'s' * (threads > 1)} of torch {torch.__version__}:\n\n"
        "| program | rows | this package | torch's program |\n| --- | --- | --- | --- |\n"
        + "\n".join(lines)
        + "\n"
    )
