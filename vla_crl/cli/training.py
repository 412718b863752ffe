"""What `train` does: one run of a recipe, or a run of each seed and what they say together.

As in `commands`, heavy modules are imported where they are used.
"""

import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from vla_crl.cli.commands import Options
from vla_crl.errors import ConfigError, UnfinishedError
from vla_crl.own_code import in_a_line, place_of
from vla_crl.recipes import load_recipe
from vla_crl.runs.directory import RunDirectory
from vla_crl.termination import telling_how_to_go_on


def train(options: Options) -> None:
    """Train a policy on one task after another, as a recipe says, and write the report."""
    if options.changed_sources and not options.resume:
        raise ConfigError("train: --changed-sources is for --resume; leave it out")
    path = options.run_dir or Path("runs") / Path(options.recipe).stem
    config = load_recipe("train", options.recipe, options.overrides)
    if options.seeds:
        _train_seeds(config, path, options)
        return
    try:
        _train_once(config, RunDirectory(path), _sources(config), options, resume=options.resume)
    except Exception as error:
        if place_of(error) and (path / "config.json").is_file():
            error.add_note(f"When it is mended, go on with: {_again(options, error)}")
        raise


def _train_once(
    config: Any, run: RunDirectory, sources: Any, options: Options, *, resume: bool
) -> None:
    """Begin or resume a run, and finish it with films and report."""
    from vla_crl.continual.success_matrix import SuccessMatrix
    from vla_crl.continual.trainer import Trainer
    from vla_crl.progress import console
    from vla_crl.report.page import write_report
    from vla_crl.report.tables import print_results

    begun = perf_counter()
    trainer = Trainer(config, run)  # first: a useless recipe leaves no folder
    if resume and run.path.is_dir() and run.holds_nothing():
        print(f"{run.path}: nothing there to go on with, so the run begins", file=sys.stderr)
        resume = False  # a process was killed that had just begun
    if resume:
        RunDirectory.open(run.path).require_config(config, trainer.weights)
        sources.require(run, may_differ=options.changed_sources)
    else:
        RunDirectory.create(
            run.path,
            config,
            seed=config.seed,
            command=options.command_line,
            conditions=trainer.suite.conditions,
            policy_weights=trainer.weights,
            sources=[asdict(sources.record())] if sources.sums else [],
        )
    with run.locked(), telling_how_to_go_on(f"go on with: {_again(options)}"):
        sources.keep(run)
        try:
            trainer.train(resume=resume)
        finally:
            trainer.close()
        if config.video_episodes:
            _film(trainer)
        trainer.loggers.finish()
        if not resume:  # else nobody knows how long the commands before took
            run.record_command_time(perf_counter() - begun)
        print_results(SuccessMatrix.read(run.matrix_file, rounds=config.rounds), console)
        print(write_report(run.path))


def _film(trainer: Any) -> None:
    """Film a run's policy before and after training."""
    from vla_crl.report.film import film_run
    from vla_crl.rollout.agents import PolicyAgent

    config = trainer.config
    agents = {
        "before training": PolicyAgent(trainer.load_base(), deterministic=True),
        "after training": PolicyAgent(trainer.policy, deterministic=True),
    }
    film_run(
        agents,
        trainer.suite,
        trainer.stream.train_tasks,
        num_episodes=config.video_episodes,
        folder=trainer.run.videos,
        compute=config.compute,
    )


def _train_seeds(config: Any, path: Path, options: Options) -> None:
    """Make a run of each seed; one that fails does not keep the others from being made."""
    from vla_crl.progress import console
    from vla_crl.report.several import write_reports

    _check_seeds(path, options)
    configs = {seed: replace(config, seed=seed) for seed in options.seeds}
    runs = {seed: RunDirectory(path.with_name(f"{path.name}_seed{seed}")) for seed in configs}
    summary, sources = path.with_name(f"{path.name}_seeds.md"), _sources(config)
    if options.resume:
        _check_begun(runs, configs, sources, options)
    else:
        _check_new(runs, summary)
    failed: dict[int, str] = {}
    again = _again(options)
    for seed, run in runs.items():
        try:
            if options.resume and _is_complete(run, configs[seed]):
                console.print(f"{run.path}: is complete, nothing is left to do", soft_wrap=True)
                continue
            console.print(f"seed {seed} of {_listed(runs)}: {run.path}", soft_wrap=True)
            resume = options.resume and run.path.exists()
            _train_once(configs[seed], run, sources, options, resume=resume)
        except BrokenPipeError:
            raise
        except Exception as error:
            if (line := in_a_line(error)) is None or not run.config_file.is_file():
                raise  # a fault of ours, or one that all seeds would meet
            again = _again(options, error) if place_of(error) else again
            failed[seed] = line
            console.print(f"{run.path}: failed: {line}", soft_wrap=True)
    if failed:
        told = "; ".join(f"{runs[seed].path}: {line}" for seed, line in failed.items())
        others = ", the others are complete" if len(failed) < len(runs) else ""
        raise UnfinishedError(
            f"{len(failed)} of {len(runs)} seeds failed{others}: {told}. Go on with: {again}"
        )
    write_reports([run.path for run in runs.values()], summary)
    print(summary)


def _check_seeds(path: Path, options: Options) -> None:
    """Refuse seeds that name no runs, or one twice."""
    seeds = options.seeds
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {_listed(seeds)}: one is there twice; name each once")
    if any(flag.partition("=")[0] == "--seed" for flag in options.overrides):
        raise ConfigError("train: --seeds names the seeds already; leave out --seed")
    if path.name in ("", ".."):
        raise ConfigError(f"--run-dir {path}: expected a name, to which the seeds are added")


def _check_new(runs: Mapping[int, RunDirectory], summary: Path) -> None:
    """Check that nothing is overwritten."""
    for run in runs.values():
        run.require_new()
    if summary.exists():
        raise ConfigError(
            f"{summary}: exists; nothing was overwritten. Choose another --run-dir, or add "
            "--resume to go on with these runs and to begin those that are missing"
        )


def _check_begun(
    runs: Mapping[int, RunDirectory], configs: Mapping[int, Any], sources: Any, options: Options
) -> None:
    """Check that what is there was begun with the same settings, policy and sources."""
    from vla_crl.continual.beginning import load_beginning
    from vla_crl.models.weights import weights_fingerprint

    begun = {
        seed: run for seed, run in runs.items() if run.path.exists() and not run.holds_nothing()
    }
    if not begun:
        RunDirectory.open(next(iter(runs.values())).path)  # tells that it is none
    config = next(iter(configs.values()))
    config.compute.prepare()
    weights = weights_fingerprint(load_beginning(config))
    for seed, run in begun.items():
        if config.init == "random":  # each seed has others
            weights = weights_fingerprint(load_beginning(configs[seed]))
        RunDirectory.open(run.path).require_config(configs[seed], weights)
        sources.require(run, may_differ=options.changed_sources)


def _is_complete(run: RunDirectory, config: Any) -> bool:
    """Tell whether a run is trained, filmed and reported."""
    from vla_crl.continual.success_matrix import SuccessMatrix
    from vla_crl.sim.backends import find_suite

    if run.state.exists() or not (run.matrix_file.is_file() and run.report_file.is_file()):
        return False
    last = SuccessMatrix.read(run.matrix_file, rounds=config.rounds).evaluated_stages[-1]
    is_filmed = not config.video_episodes or any(run.videos.glob("*.mp4"))
    is_reported = run.report_file.stat().st_mtime >= run.matrix_file.stat().st_mtime
    return last == config.stream(find_suite(config.suite)).num_stages and is_filmed and is_reported


def _sources(config: Any) -> Any:
    """Read what of the user's own a run of a recipe is made with."""
    from vla_crl.continual.known_methods import find_methods
    from vla_crl.runs.sources import Sources
    from vla_crl.sim.backends import find_suite

    find_suite(config.suite)  # loads the modules of its backend
    classes = [*find_methods(config.method).values(), type(config.learner)]
    return Sources.read(classes, config.suite)


def _again(options: Options, error: Exception | None = None) -> str:
    """Return the command that goes on, after an error in the user's own code once it is mended."""
    flags = ["--resume", *(["--changed-sources"] if error and place_of(error) else [])]
    begun = [a for a in options.command_line if a not in ("--resume", "--changed-sources")]
    return shlex.join([*begun, *flags])


def _listed(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))
