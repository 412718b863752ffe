"""What each command does, as a function of its parsed options.

It returns rows (a list of objects), one object, or None if it has said all it has to say. Heavy
modules are imported where they are used, so that `--help` and typos answer at once.
"""

import argparse
import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_crl import catalog
from vla_crl.compute import ComputeConfig
from vla_crl.config import read_toml
from vla_crl.errors import ConfigError, ForeignError, StoppedEvaluationError, unknown_name
from vla_crl.files.reading import read_text
from vla_crl.files.writing import keep
from vla_crl.own_classes import list_classes
from vla_crl.recipes import load_recipe, read_recipe
from vla_crl.rounding import percentage

Options = argparse.Namespace
Records = list[dict[str, Any]]

EXPERT = "expert"
"""What --policy takes instead of a policy: the scripted expert."""
NUM_EVALUATED_ENVS = 128
"""Robots at a time in an evaluation unless told otherwise, and where failures are looked for: with
as many, the same episodes fail."""
FILMED_EPISODES = 4
"""Episodes a task that `rollout` films unless told otherwise."""


def list_definitions(options: Options) -> Records:
    """List the suites, policies, recipes, methods, learners, heads or tasks there are."""
    if options.suite and options.what != "tasks":
        raise ConfigError(f"list {options.what}: --suite is for tasks only")
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
            from vla_crl.continual.known_methods import list_methods

            return list_methods()
        case "learners":
            from vla_crl.algos.learner import Learner
            from vla_crl.algos.learners import LEARNERS, find_learner

            return list_classes(LEARNERS, find_learner, Learner)
        case "heads":
            from vla_crl.models.heads.head import HEADS, ActionHead, find_head

            return list_classes(HEADS, find_head, ActionHead)
        case _:
            return _describe_suite(options.suite)["tasks"] if options.suite else _all_tasks()
    return [{"name": name, "description": _describe(name, path)} for name in names]


def show(options: Options) -> dict[str, Any] | None:
    """Show one suite, policy or recipe in full."""
    if options.what == "suite":
        if options.output:
            require_new(options.output, "--output", ".png")
            from vla_crl.report.contact_sheet import write_contact_sheet
            from vla_crl.sim.backends import find_suite

            write_contact_sheet(find_suite(options.name), options.output)
        return _describe_suite(options.name)
    if options.output:
        raise ConfigError(f"show {options.what}: --output is for suites only")
    if options.what == "recipe":
        recipe = read_recipe(options.name)
        origins = {".".join(key): str(file) for key, file in recipe.origins.items()}
        if options.json:
            gone = {key: v for left in recipe.left_out.values() for key, v in left.keys.items()}
            left_out = {".".join(key): value for key, value in gone.items()}
            return {"settings": recipe.settings, "origins": origins, "left_out": left_out}
        is_whole = len(recipe.files) == 1
        text = read_text(recipe.files[0]) if is_whole else recipe.as_toml()
        print(text, end="")
        return None
    path = catalog.policy_path(options.name)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected the name or the file of a policy")
    content = read_toml(path)  # a file that is no settings file is refused
    if options.json:
        return content
    print(read_text(path), end="")
    return None


def collect(options: Options) -> None:
    """Record demonstrations of the scripted experts of a suite."""
    catalog.suite_path(options.suite)
    require_new(options.output, "--output", ".npz")
    from vla_crl.datasets.npz import save_demonstrations
    from vla_crl.rollout.demonstrations import collect_demonstrations
    from vla_crl.sim.backends import find_suite

    suite = find_suite(options.suite)
    demonstrations = collect_demonstrations(
        suite,
        options.episodes,
        seed=options.seed,
        image_size=options.image_size,
        num_threads=options.num_sim_threads,
    )
    keep(options.output, lambda path: save_demonstrations(demonstrations, suite, path))


def pretrain(options: Options) -> None:
    """Train a base policy on demonstrations, as a recipe says."""
    output = options.output or Path("runs") / Path(options.recipe).stem
    require_new(output, "--output")
    config = load_recipe("pretrain", options.recipe, options.overrides)
    from vla_crl.pretraining.pretrain import pretrain as pretrain_policy

    pretrain_policy(config, output, recipe=shlex.join([options.recipe, *options.overrides]))


def evaluate(options: Options) -> Records:
    """Measure the success of a policy on the fixed initial states of a suite."""
    catalog.suite_path(options.suite)
    from vla_crl.runs.evaluations import episodes_beside, result_rows, write_results

    if options.output:
        require_new(options.output, "--output")
        require_new(episodes_beside(options.output), "--output")
    compute = _compute(options)
    from vla_crl.progress import console
    from vla_crl.rollout.episodes import evaluated
    from vla_crl.rollout.evaluate import evaluate as evaluate_agent
    from vla_crl.rollout.fingerprint import fingerprint
    from vla_crl.rollout.lanes import close_lanes, simulate_lanes
    from vla_crl.sim.backends import find_suite

    suite = find_suite(options.suite)
    if options.protocol:
        suite = suite.with_protocol(options.protocol)
    episodes = options.episodes or suite.trials
    tasks, ids = evaluated(suite, options.tasks, episodes, options.states)
    agent = _agent(options, suite, compute, deterministic=not options.sampled)
    num_envs = min(options.num_envs, episodes * len(tasks))
    sims = simulate_lanes(
        suite, num_envs, image_size=agent.image_size, compute=compute, tasks=tasks
    )
    measured = fingerprint(
        suite,
        tasks,
        ids,
        policy=options.policy,
        **agent.description(suite),
        num_envs=num_envs,
        **dataclasses.asdict(compute),
    )
    for key, value in measured.items() if suite.conditions else ():
        console.print(f"{key}: {value}", soft_wrap=True)
    try:
        results = evaluate_agent(
            agent, sims, options.tasks, num_episodes=episodes, states=options.states
        )
    except StoppedEvaluationError as error:
        if options.output is None:
            raise
        partial = options.output.with_suffix(".partial.json")
        ended = [row for row in error.results if row.episodes]
        measured["stopped"] = "before all of these states"
        write_results(partial, result_rows(ended, measured), ended)
        raise ForeignError(f"{error}. Episodes that had ended are in {partial}") from error
    finally:
        close_lanes(sims)
    rows = result_rows(results, measured)
    if options.output:
        keep(options.output, lambda path: write_results(path, rows, results))
    successes, total = (sum(row[key] for row in rows) for key in ("successes", "episodes"))
    console.print(f"success: {successes} of {total} episodes, {percentage(successes / total, 1)} %")
    if not options.json:  # a table has no room for it, and it has been printed
        rows = [{key: row[key] for key in row if key != "fingerprint"} for row in rows]
    return rows


def rollout(options: Options) -> None:
    """Film a policy: a grid with the instruction and the outcome of each episode."""
    catalog.suite_path(options.suite)
    from vla_crl.report.video import FORMATS

    require_new(options.output, "--output", *FORMATS)
    if options.states and (options.only or options.episodes):
        other = "--only" if options.only else "--episodes"
        raise ConfigError(f"rollout: --states names the episodes already; leave out {other}")
    compute = _compute(options)
    from vla_crl.sim.backends import find_suite

    suite = find_suite(options.suite)
    agent = _agent(options, suite, compute, deterministic=True)
    from vla_crl.report.film import record_failures, record_rollouts

    settings = {"output": options.output, "compute": compute, "renderer": options.renderer}
    num = options.episodes or FILMED_EPISODES
    if options.only:
        filmed = record_failures(
            agent, suite, options.tasks, num_episodes=num, num_envs=NUM_EVALUATED_ENVS, **settings
        )
    else:
        episodes = options.states or num
        filmed = record_rollouts(agent, suite, options.tasks, episodes=episodes, **settings)
    if filmed:
        print(options.output)


def metrics(options: Options) -> Records | None:
    """Compute continual-learning metrics from a success matrix in long format."""
    from vla_crl.continual.metrics import compute_metrics
    from vla_crl.continual.success_matrix import SuccessMatrix
    from vla_crl.progress import PlainConsole
    from vla_crl.report.tables import print_results

    matrix = SuccessMatrix.read(options.file, rounds=options.rounds)
    if not options.json:
        print_results(matrix, PlainConsole())
        return None
    unknown = {"value": None, "low": None, "high": None}
    return [
        {"name": name} | (dataclasses.asdict(estimate) if estimate else unknown)
        for name, estimate in compute_metrics(matrix).items()
    ]


def report(options: Options) -> None:
    """Write the report of a run again; of two of different recipes, a comparison too."""
    if options.markdown:
        require_new(options.markdown, "--markdown")
    from vla_crl.report.several import write_reports

    for page in write_reports(options.runs, options.markdown):
        print(page)


def _compute(options: Options) -> ComputeConfig:
    """Return where to compute, as the flags say, after a check that it can be done there."""
    names = [field.name for field in dataclasses.fields(ComputeConfig)]
    compute = ComputeConfig(**{name: getattr(options, name) for name in names})
    compute.prepare()
    return compute


def _agent(options: Options, suite: Any, compute: ComputeConfig, *, deterministic: bool) -> Any:
    """Return who acts in a suite: the scripted expert or a policy."""
    from vla_crl.contracts import check_fits, compare_pictures
    from vla_crl.rollout.agents import ExpertAgent, PolicyAgent

    policy = options.policy
    if policy == EXPERT:
        if options.base:
            raise ConfigError(f"--base {options.base}: the expert has no base policy; leave it out")
        return ExpertAgent()
    loaded = load_named_policy(options, compute)
    where = f"policy '{policy}' on suite '{suite.name}'"
    check_fits(loaded.embodiment, suite.embodiment, where)
    compare_pictures(loaded.config.pictures, suite.pictures, where)
    return PolicyAgent(loaded, deterministic)


def load_named_policy(options: Options, compute: ComputeConfig) -> Any:
    """Return the policy that --policy and --base name."""
    from vla_crl.models.checkpoint import load_policy

    policy, known = options.policy, catalog.list_policies()
    if policy not in known and not ("/" in policy or Path(policy).exists()):
        raise unknown_name("--policy", "policy", policy, [*known, EXPERT])
    return load_policy(policy, base=options.base, device=compute.device, dtype=compute.dtype)


def _describe(name: str, find: Callable[[str], Path]) -> str:
    """Return the description of a definition; a broken one does not hide the others."""
    try:
        return catalog.description(find(name))
    except ConfigError as error:
        return f"cannot be read: {error}"


def _all_tasks() -> Records:
    rows: Records = []
    for suite in catalog.list_suites():
        try:
            rows += _describe_suite(suite)["tasks"]
        except ConfigError as error:  # does not hide the others
            print(f"suite '{suite}' is left out: {error}", file=sys.stderr)
    return rows


def _describe_suite(name: str) -> dict[str, Any]:
    from vla_crl.sim.backends import find_suite

    suite, fields = find_suite(name), ("name", "instruction", "split")
    success = catalog.expert_success(name)
    tasks = [
        {"suite": name}
        | {field: getattr(task, field) for field in fields}
        | {"expert_success": success.get(task.name)}
        for task in suite.tasks
    ]
    folder = str(catalog.suite_path(name))
    return {"name": name, "description": suite.description, "folder": folder, "tasks": tasks}


def require_new(path: Path, flag: str, *suffixes: str) -> None:
    """Check before the work, not after it, that the result can be written."""
    if path.exists():
        raise ConfigError(f"{path}: exists; nothing was overwritten. Choose another {flag}.")
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(f"{flag} {path}: expected a name that ends in {' or '.join(suffixes)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{flag} {path}: cannot write to {path.parent} ({error.strerror})"
        ) from error
