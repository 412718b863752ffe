"""The command line: `vla-crl COMMAND`, a thin layer over functions that Python can call as well.

A command is a function that takes the parsed options and returns rows (a list of objects), one
object, or None if it has said all it has to say. `main` prints them as a table or, with `--json`,
as exactly one JSON document on stdout. Logs and progress go to stderr.
"""

import argparse
import contextlib
import dataclasses
import difflib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from vla_crl import __version__, catalog
from vla_crl.config import load_toml, override, read_toml, write_atomically
from vla_crl.doctor import check_all, use_headless_gl
from vla_crl.errors import USER_ERRORS, ConfigError

Options = argparse.Namespace
Rows = list[dict[str, Any]]

BENCHES = {
    "render": "vla_crl.bench.render:bench_render",
    "sim": "vla_crl.bench.sim:bench_sim",
    "update": "vla_crl.bench.update:bench_update",
}
RECIPE_CLASSES = {
    "pretrain": "vla_crl.pretraining:PretrainConfig",
    "train": "vla_crl.continual.trainer:TrainConfig",
}


def list_definitions(options: Options) -> Rows:
    """List the suites, policies, recipes, methods or tasks there are."""
    match options.what:
        case "suites":
            names, path = (
                catalog.list_suites(),
                lambda name: catalog.suite_path(name) / "suite.toml",
            )
        case "policies":
            names, path = catalog.list_policies(), catalog.policy_path
        case "recipes":
            names, path = catalog.list_recipes(), catalog.recipe_path
        case "methods":
            from vla_crl.continual.method import METHODS

            return [{"name": name, "class": METHODS[name]} for name in sorted(METHODS)]
        case _:
            suites = [options.suite] if options.suite else catalog.list_suites()
            return [task for suite in suites for task in _describe_suite(suite)["tasks"]]
    return [{"name": name, "description": catalog.description(path(name))} for name in names]


def show(options: Options) -> dict[str, Any] | None:
    """Show one suite, policy or recipe in full."""
    if options.what == "suite":
        return _describe_suite(options.name)
    find = {"policy": catalog.policy_path, "recipe": catalog.recipe_path}[options.what]
    path = find(options.name)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected the name or the file of a {options.what}")
    if options.json:
        return read_toml(path)
    print(path.read_text(encoding="utf-8"), end="")
    return None


def collect(options: Options) -> None:
    """Record demonstrations of the scripted experts of a suite."""
    catalog.suite_path(options.suite)
    _require_new(options.output, "--output")
    from vla_crl.rollout.demonstrations import collect_demonstrations

    demonstrations = collect_demonstrations(options.suite, options.episodes, seed=options.seed)
    demonstrations.save(options.output)


def pretrain(options: Options) -> None:
    """Train a base policy on demonstrations, as a recipe says."""
    output = options.output or Path("runs") / Path(options.recipe).stem
    _require_new(output, "--output")
    config = _load_recipe("pretrain", options.recipe, options.overrides)
    from vla_crl.pretraining import pretrain as pretrain_policy

    pretrain_policy(config, output=output)


def train(options: Options) -> None:
    """Train a policy on one task after another, as a recipe says, and write the report."""
    path = options.run_dir or Path("runs") / Path(options.recipe).stem
    config = _load_recipe("train", options.recipe, options.overrides)
    from vla_crl.continual.trainer import Trainer
    from vla_crl.models.checkpoint import load_policy
    from vla_crl.report.film import film_run
    from vla_crl.report.page import write_report
    from vla_crl.run_directory import RunDirectory

    trainer = Trainer(config, RunDirectory(path))  # first: a useless recipe leaves no folder
    if options.resume:
        RunDirectory.open(path).require_config(config)
    else:
        RunDirectory.create(path, config, seed=config.seed, command=options.command_line)
    trainer.train(resume=options.resume)
    if config.video_episodes:
        film_run(
            load_policy(config.policy),
            trainer.policy,
            config.suite,
            trainer.stream.train_tasks,
            num_episodes=config.video_episodes,
            folder=trainer.run.videos,
        )
    print(write_report(path))


def evaluate(options: Options) -> Rows:
    """Measure the success of a policy on the fixed test states of a suite."""
    catalog.suite_path(options.suite)
    if options.output:
        _require_new(options.output, "--output")
    from vla_crl.continual.statistics import wilson_interval
    from vla_crl.models.checkpoint import load_policy
    from vla_crl.rollout.evaluate import evaluate_policy

    results = evaluate_policy(
        load_policy(options.policy),
        options.suite,
        options.tasks,
        num_episodes=options.episodes,
        deterministic=not options.sampled,
        num_envs=options.num_envs,
    )
    rows: Rows = []
    for result in results:
        low, high = wilson_interval(result.successes, result.episodes)
        rows.append(dataclasses.asdict(result) | {"low": low, "high": high})
    if options.output:
        write_atomically(options.output, json.dumps(rows, indent=2) + "\n")
    return rows


def rollout(options: Options) -> None:
    """Film a policy: an mp4 grid with the instruction and the outcome of each episode."""
    catalog.suite_path(options.suite)
    _require_new(options.output, "--output")
    from vla_crl.models.checkpoint import load_policy
    from vla_crl.report.film import record_rollouts

    record_rollouts(
        load_policy(options.policy),
        options.suite,
        options.tasks,
        num_episodes=options.episodes,
        output=options.output,
    )
    print(options.output)


def metrics(options: Options) -> Rows:
    """Compute continual-learning metrics from a success matrix in long format."""
    from vla_crl.continual.metrics import metrics_from_file

    values = metrics_from_file(options.file)
    return [{"name": name, "value": value} for name, value in values.items()]


def report(options: Options) -> None:
    """Write the report of a run again, from its run directory alone."""
    from vla_crl.report.page import write_report
    from vla_crl.run_directory import RunDirectory

    print(write_report(RunDirectory.open(options.run).path))


def bench(options: Options) -> Rows | None:
    """Measure speed beside a peer on this machine."""
    catalog.suite_path(options.suite)
    from vla_crl.bench.record import print_table

    run_bench = cast(Callable[..., list[Any]], catalog.load_attribute(BENCHES[options.what], "bench"))
    records = run_bench() if options.what == "update" else run_bench(options.suite)
    if options.json:
        return [dataclasses.asdict(record) for record in records]
    print_table(records)
    return None


def doctor(options: Options) -> Rows:
    """Check this machine and this installation, and say what to do about what is amiss."""
    return [dataclasses.asdict(check) for check in check_all()]


class _RecipeHelp(argparse.Action):
    """`train --help` explains the command, `train RECIPE --help` also every setting."""

    def __call__(self, parser: Any, namespace: Options, values: Any, option_string: Any = None):
        parser.print_help()
        if namespace.recipe:
            _load_recipe(namespace.command, namespace.recipe, ["--help"])
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="vla-crl", description="Train and benchmark robot policies that keep learning."
    )
    parser.add_argument("--version", action="version", version=f"vla-crl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, function: Callable[[Options], Any]) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=function.__doc__,
            description=function.__doc__,
            allow_abbrev=False,
            add_help=name not in RECIPE_CLASSES,
        )
        command.set_defaults(function=function, json=False, parser=command, command=name)
        return command

    command = add("list", list_definitions)
    command.add_argument("what", choices=("suites", "policies", "recipes", "methods", "tasks"))
    command.add_argument("--suite", help="for tasks: only those of this suite")
    _add_json(command)

    command = add("show", show)
    command.add_argument("what", choices=("suite", "policy", "recipe"))
    command.add_argument("name", help="a name from 'vla-crl list', or a file")
    _add_json(command)

    command = add("collect", collect)
    command.add_argument("--suite", required=True)
    command.add_argument("--episodes", type=_positive, required=True, help="over all tasks")
    command.add_argument("--output", type=Path, required=True, help="a file that does not exist")
    command.add_argument("--seed", type=int, default=0)

    command = add("pretrain", pretrain)
    _add_recipe(command)
    command.add_argument("--output", type=Path, help="a new folder (default: runs/<recipe>)")

    command = add("train", train)
    _add_recipe(command)
    command.add_argument("--run-dir", type=Path, help="a new folder (default: runs/<recipe>)")
    command.add_argument("--resume", action="store_true", help="go on after the last full stage")

    command = add("evaluate", evaluate)
    _add_policy_and_suite(command, default_episodes=100)
    command.add_argument(
        "--sampled", action="store_true", help="sample actions as in training (default: the ODE)"
    )
    command.add_argument("--num-envs", type=_positive, default=128, help="robots at a time")
    command.add_argument("--output", type=Path, help="also write the rows to this new file, JSON")
    _add_json(command)

    command = add("rollout", rollout)
    _add_policy_and_suite(command, default_episodes=4)
    command.add_argument("--output", type=Path, default=Path("rollout.mp4"), help="a new file")

    command = add("metrics", metrics)
    columns = "CSV or JSON lines with stage, task, split, successes, episodes"
    command.add_argument("file", type=Path, help=columns)
    _add_json(command)

    command = add("report", report)
    command.add_argument("run", type=Path, help="a run directory")

    command = add("bench", bench)
    command.add_argument("what", choices=tuple(BENCHES))
    command.add_argument("--suite", default="tabletop_object", help="for render and sim")
    _add_json(command)

    _add_json(add("doctor", doctor))
    return parser


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a name from 'vla-crl list', or a file")
    command.add_argument("-h", "--help", nargs=0, action=_RecipeHelp, help="show this and exit")
    command.epilog = (
        "Every setting of the recipe is a flag as well, after RECIPE, for example "
        f"--seed 1; '{command.prog} RECIPE --help' lists them with their values."
    )


def _add_policy_and_suite(command: argparse.ArgumentParser, *, default_episodes: int) -> None:
    command.add_argument("--policy", required=True, help="a preset, or a checkpoint's path")
    command.add_argument("--suite", required=True)
    command.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of the suite")
    command.add_argument(
        "--episodes",
        type=_positive,
        default=default_episodes,
        help=f"per task (default: {default_episodes})",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 (doctor found a fault), 2 (a user's mistake) or 130 (interrupted).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("vla_crl").setLevel(logging.INFO)
    use_headless_gl()
    try:
        options, unknown = build_parser().parse_known_args(arguments)
        options.overrides, options.command_line = unknown, ["vla-crl", *arguments]
        if unknown and options.command not in RECIPE_CLASSES:
            raise _unknown_argument(options, unknown[0])
        with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
            result = options.function(options)
    except USER_ERRORS as error:
        print(f"vla-crl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vla-crl: interrupted", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    elif result:
        _print_rows(result)
    return (
        1 if options.command == "doctor" and any(row["status"] == "fail" for row in result) else 0
    )


def _print_rows(result: Rows | dict[str, Any]) -> None:
    """Print rows as a table; an object as its values and, below, its list of rows."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    if isinstance(result, dict):
        for key, value in result.items():
            if isinstance(value, list):
                _print_rows(value)
            else:
                console.print(f"{key}: {value}")
        return
    table = Table(*result[0])
    for row in result:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _describe_suite(name: str) -> dict[str, Any]:
    path = catalog.suite_path(name)
    from vla_crl.sim.suite import load_suite

    fields = ("name", "instruction", "split")
    tasks = [
        {"suite": name} | {field: getattr(task, field) for field in fields}
        for task in load_suite(name).tasks
    ]
    return {"name": name, "description": catalog.description(path / "suite.toml"), "tasks": tasks}


def _require_new(path: Path, flag: str) -> None:
    """Check before the work, not after it, that the result can be written."""
    if path.exists():
        raise ConfigError(f"{path}: exists; nothing was overwritten. Choose another {flag}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot make {path.parent} ({error.strerror})") from error


def _load_recipe(command: str, recipe: str, overrides: Sequence[str]) -> Any:
    """Return the settings of a recipe with the flags applied."""
    path = catalog.recipe_path(recipe)
    config_class = cast(type[Any], catalog.load_attribute(RECIPE_CLASSES[command], "vla-crl"))
    return override(load_toml(config_class, path), overrides, f"vla-crl {command} {recipe}")


def _unknown_argument(options: Options, argument: str) -> ConfigError:
    flags = [flag for action in options.parser._actions for flag in action.option_strings]
    close = difflib.get_close_matches(argument.partition("=")[0], flags, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"See vla-crl {options.command} --help."
    return ConfigError(f"vla-crl {options.command}: unknown argument '{argument}'. {hint}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
