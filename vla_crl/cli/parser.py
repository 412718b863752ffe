"""What the command line takes: every command, its flags and their help."""

import argparse
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, get_args

from vla_crl import __version__
from vla_crl.cli import commands, measuring, training
from vla_crl.cli.commands import Options
from vla_crl.compute import ComputeConfig, Dtype
from vla_crl.config import MAX_SEED
from vla_crl.errors import ConfigError
from vla_crl.export.command import export
from vla_crl.files.reading import shown
from vla_crl.recipes import RECIPE_CLASSES

_SUITE_HELP = "a name from 'vla-crl list suites', also with a controller: NAME@joint_position"


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as `main` reports all others: in one line, with the nearest choice."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        close = wrong and difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1)
        hint = f". Did you mean '{close[0]}'?" if close else f"; see {self.prog} --help"
        raise ConfigError(f"{self.prog}: {message}{hint}")


class _RecipeHelp(argparse.Action):
    """`train --help` explains the command, `train RECIPE --help` also every setting."""

    def __call__(self, parser: Any, namespace: Options, values: Any, option_string: Any = None):
        parser.print_help()
        if not namespace.recipe:
            parser.exit()
        namespace.help = True  # of the settings, which depend on the flags that follow


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="vla-crl", description="Train and benchmark robot policies that keep learning."
    )
    parser.add_argument("--version", action="version", version=f"vla-crl {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, function: Callable[[Options], Any]) -> argparse.ArgumentParser:
        command = subparsers.add_parser(
            name,
            help=function.__doc__,
            description=function.__doc__,
            allow_abbrev=False,
            add_help=name not in RECIPE_CLASSES,
        )
        command.set_defaults(
            function=function, json=False, help=False, parser=command, command=name
        )
        return command

    command = add("list", commands.list_definitions)
    command.add_argument(
        "what",
        choices=("suites", "policies", "recipes", "methods", "learners", "heads", "tasks"),
    )
    command.add_argument("--suite", help="for tasks: only those of this suite")
    _add_json(command)

    command = add("show", commands.show)
    command.add_argument("what", choices=("suite", "policy", "recipe"))
    command.add_argument("name", help="a name from 'vla-crl list', or a file")
    command.add_argument(
        "--output", type=Path, help="for a suite: also draw a picture of every task, a new png"
    )
    _add_json(command)

    command = add("collect", commands.collect)
    command.add_argument("--suite", required=True, help=_SUITE_HELP)
    command.add_argument("--episodes", type=_positive, required=True, help="over all tasks")
    command.add_argument("--output", type=Path, required=True, help="a new npz")
    command.add_argument("--seed", type=_not_negative, default=0)
    command.add_argument(
        "--image-size",
        type=_positive,
        default=64,
        help="height and width of a camera's image in pixels (default: 64)",
    )
    _add_sim_threads(command)

    _add_learning_commands(add)
    command = add("evaluate", commands.evaluate)
    _add_policy_and_suite(command, default_episodes="as the suite or its protocol says")
    command.add_argument(
        "--protocol",
        help="for suites of LIBERO: how others measure, such as openpi; as SUITE@PROTOCOL",
    )
    command.add_argument(
        "--sampled",
        action="store_true",
        help="sample actions as in training (default: deterministic actions)",
    )
    command.add_argument(
        "--states", choices=("test", "train"), default="test", help="initial states (default: test)"
    )
    command.add_argument(
        "--num-envs",
        type=_positive,
        default=commands.NUM_EVALUATED_ENVS,
        help="robots at a time; another number rounds differently, and as contacts are chaotic, "
        "the success of a task moves by some points",
    )
    command.add_argument(
        "--output",
        type=Path,
        help="also write the rows to this new file, JSON, and every episode beside it: "
        "rows.json and rows.episodes.csv",
    )
    _add_json(command)

    command = add("rollout", commands.rollout)
    _add_policy_and_suite(command, default_episodes=str(commands.FILMED_EPISODES))
    command.add_argument(
        "--states",
        nargs="+",
        type=_not_negative,
        metavar="ID",
        help="initial states of each task, such as those in episodes.csv (default: the first of "
        "the test states)",
    )
    command.add_argument(
        "--only",
        choices=("failures",),
        help="play what 'evaluate' plays, and film what failed, as it went: at most --episodes "
        "a task",
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("rollout.mp4"),
        help="a new mp4, or webp, which pages show as a picture that moves",
    )
    command.add_argument(
        "--renderer",
        choices=("own", "mujoco"),
        default="own",
        help="mujoco: OpenGL, for pretty videos (default: own, needs no graphics)",
    )

    _add_export(add("export", export))
    _add_result_commands(add)
    command = add("doctor", measuring.doctor)
    command.add_argument(
        "--device",
        help="pretrain, train, evaluate, save and load there, in small, and compare with the CPU: "
        "cuda:0, or cpu to try it",
    )
    _add_json(command)
    return parser


def _add_learning_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that take a recipe."""
    for name, function in (("pretrain", commands.pretrain), ("baseline", measuring.baseline)):
        command = add(name, function)
        _add_recipe(command)
        command.add_argument("--output", type=Path, help="a new folder (default: runs/<recipe>)")

    command = add("train", training.train)
    _add_recipe(command)
    command.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="a new folder (default: runs/<recipe>)"
    )
    command.add_argument(
        "--seeds",
        nargs="+",
        type=_not_negative,
        metavar="N",
        help="a run of each, one after another: DIR_seed0, DIR_seed1, ...; and what they say "
        "together: DIR_seeds.md",
    )
    command.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    command.add_argument(
        "--changed-sources",
        action="store_true",
        help="with --resume: the files of your own method or suite may have changed since",
    )


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--policy", required=True, help="a preset or a checkpoint's path")
    command.add_argument(
        "--base", help="of a run's checkpoint: where its base policy is, if it has been moved"
    )
    command.add_argument(
        "--merge",
        action="store_true",
        help="fold the adapters of a run's checkpoint into the base (default: kept beside it)",
    )
    command.add_argument(
        "--torch-export",
        action="store_true",
        help="also write encode.pt2, act.pt2 and sample.pt2, which torch runs without this "
        "package, an example, and how long a call takes here",
    )
    command.add_argument(
        "--license",
        metavar="ID",
        help="for the page, as the Hugging Face hub spells it (default: apache-2.0; a policy "
        "with a pretrained backbone needs one named)",
    )
    command.add_argument(
        "--output", type=Path, required=True, help="a new folder, in the form of the hub"
    )


def _add_result_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that look at results and speed."""
    command = add("metrics", commands.metrics)
    columns = (
        "CSV, or JSON lines (.jsonl, .ndjson, .json), with stage, task, split, successes, "
        "episodes; the rows of stage 0 name the training tasks in the order of training"
    )
    command.add_argument("file", type=Path, help=columns)
    command.add_argument(
        "--rounds",
        type=_positive,
        default=1,
        help="how often the stream was run through (default: 1)",
    )
    _add_json(command)

    command = add("report", commands.report)
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory")
    command.add_argument(
        "--markdown",
        type=Path,
        help="also write the numbers to this new file; of several runs, one a seed, their mean; "
        "of two of different recipes, how they compare state by state",
    )

    command = add("verify", measuring.verify)
    command.add_argument("what", choices=tuple(measuring.VERIFICATIONS))
    command.add_argument("--tasks", type=_positive, help="how many, drawn (default: all)")
    command.add_argument("--seed", type=_not_negative, default=0)
    command.add_argument("--markdown", type=Path, help="also write the rows to this new file")
    _add_json(command)

    command = add("bench", measuring.bench)
    command.add_argument("what", choices=sorted({*measuring.BENCHES, *measuring.PEER_BENCHES}))
    command.add_argument(
        "--suite",
        help="for all but update (default: tabletop_object, metaworld_mt10, two of LIBERO)",
    )
    command.add_argument(
        "--peers",
        nargs="*",
        metavar="PEER",
        help="run beside what people use (default: all that are named here); "
        "sim: AsyncVectorEnv SubprocVecEnv one_thread; render: egl osmesa warp; metaworld: threads "
        "AsyncVectorEnv; libero: original SubprocVectorEnv OffScreenRenderEnv mj_step published",
    )
    command.add_argument(
        "--sizes",
        nargs="+",
        type=_positive,
        metavar="N",
        help="libero, render: heights in pixels; scale, warp: numbers of environments",
    )
    command.add_argument("--device", help="warp: where, e.g. cuda:0, or cpu")
    command.add_argument(
        "--policy", metavar="PRESET", help="update: of what (default: a flow head, default sizes)"
    )
    _add_json(command)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a name from 'vla-crl list', or a file")
    command.add_argument("-h", "--help", nargs=0, action=_RecipeHelp, help="show this and exit")
    command.epilog = (
        "Every setting of the recipe is a flag as well, after RECIPE, for example "
        f"--seed 1; '{command.prog} RECIPE --help' lists them with their values."
    )


def _add_policy_and_suite(command: argparse.ArgumentParser, *, default_episodes: str) -> None:
    command.add_argument(
        "--policy", required=True, help="a preset, a checkpoint's path, or 'expert'"
    )
    command.add_argument(
        "--base", help="of a run's checkpoint: where its base policy is, if it has been moved"
    )
    command.add_argument("--suite", required=True, help=_SUITE_HELP)
    command.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of the suite")
    command.add_argument(
        "--episodes",
        type=_positive,
        help=f"per task (default: {default_episodes})",
    )
    _add_compute(command)


def _add_compute(command: argparse.ArgumentParser) -> None:
    """Add the settings of `ComputeConfig` as flags."""
    default = ComputeConfig()
    command.add_argument(
        "--device",
        default=default.device,
        help=f"where the policy runs: cpu, cuda or cuda:1 (default: {default.device})",
    )
    command.add_argument(
        "--sim-device",
        default=default.sim_device,
        help="where worlds are simulated: cpu, or cuda:0 for MuJoCo Warp "
        f"(default: {default.sim_device})",
    )
    command.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default=default.dtype,
        help=f"numbers of the policy's backbone (default: {default.dtype})",
    )
    command.add_argument(
        "--num-torch-threads",
        type=_positive,
        default=default.num_torch_threads,
        help="threads of the policy's matrix products, on the CPU "
        f"(default: {default.num_torch_threads})",
    )
    _add_sim_threads(command)


def _add_sim_threads(command: argparse.ArgumentParser) -> None:
    default = ComputeConfig().num_sim_threads
    command.add_argument(
        "--num-sim-threads",
        type=_positive,
        default=default,
        help=f"threads for physics and rendering, on the CPU (default: {default})",
    )


def _not_negative(text: str) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number, 0 to {MAX_SEED}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number, 1 to 999999999")
    return int(text)
