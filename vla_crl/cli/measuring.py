"""What the commands do that measure: speed, likeness to a package, this machine.

As in `commands`, heavy modules are imported where they are used.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from vla_crl import catalog
from vla_crl.cli.commands import Options, Records, load_recipe, require_new
from vla_crl.cli.doctor import check_all
from vla_crl.errors import ConfigError, install_extra
from vla_crl.files.writing import write_atomically

BENCHES = {
    "libero": "vla_crl.bench.libero:bench_libero",
    "render": "vla_crl.bench.render:bench_render",
    "scale": "vla_crl.bench.scale:bench_scale",
    "sim": "vla_crl.bench.sim:bench_sim",
    "update": "vla_crl.bench.update:bench_update",
    "warp": "vla_crl.bench.warp:bench_warp",
}
PEER_BENCHES = {
    "libero": "vla_crl.bench.libero_peers:bench_libero_peers",
    "metaworld": "vla_crl.bench.metaworld_peers:bench_metaworld_peers",
    "render": "vla_crl.bench.render_peers:bench_render_peers",
    "sim": "vla_crl.bench.sim_peers:bench_sim_peers",
}
SIZED = ("libero", "render", "scale", "warp")
"""Benchmarks that take --sizes."""
VERIFICATIONS = {
    "libero": "vla_crl.sim.libero.verify",
    "metaworld": "vla_crl.sim.metaworld.verify",
}
"""Modules that compare a backend with the package that it stands for."""


def bench(options: Options) -> Records | None:
    """Measure speed beside a peer on this machine."""
    if options.suite:
        catalog.suite_path(options.suite)
    from vla_crl.bench.record import print_table

    benches = BENCHES if options.peers is None else PEER_BENCHES
    if options.what not in BENCHES and options.peers is None:
        raise ConfigError(f"bench {options.what}: is measured beside peers only, add --peers")
    if options.what not in benches:
        raise ConfigError(f"bench {options.what}: has no --peers; {', '.join(benches)} have")
    if options.sizes and options.what not in SIZED:
        raise ConfigError(
            f"bench {options.what}: has no --sizes; {', '.join(SIZED[:-1])} and {SIZED[-1]} have"
        )
    if options.device and options.what != "warp":
        raise ConfigError(f"bench {options.what}: has no --device; warp has")
    if options.policy and options.what != "update":
        raise ConfigError(f"bench {options.what}: has no --policy; update has")
    if options.what == "warp" and not options.device:
        raise ConfigError("bench warp: needs --device, e.g. --device cuda:0")
    run_bench = cast(
        Callable[..., list[Any]], catalog.load_attribute(benches[options.what], "bench")
    )
    settings = {
        "suite": None if options.what == "update" else options.suite,
        "peers": options.peers,
        "sizes": options.sizes,
        "device": options.device,
        "policy": options.policy,
    }
    records = run_bench(**{name: value for name, value in settings.items() if value})
    if options.json:
        return [dataclasses.asdict(record) for record in records]
    print_table(records)
    return None


def baseline(options: Options) -> None:
    """Train stable-baselines3's PPO on one task, as a recipe says, measured as our policies are."""
    if importlib.util.find_spec("stable_baselines3") is None:
        raise ConfigError(f"vla-crl baseline: needs stable-baselines3; {install_extra('sb3')}")
    output = options.output or Path("runs") / Path(options.recipe).stem
    require_new(output, "--output")
    config = load_recipe("baseline", options.recipe, options.overrides)
    from vla_crl.report.baseline_curve import write_baseline_curve
    from vla_crl.sb3.baseline import train_baseline

    train_baseline(config, output, options.command_line)
    write_baseline_curve(output / "curve.csv")
    print(output)


def verify(options: Options) -> Records:
    """Compare what we simulate with the package that it is of, task by task."""
    if options.markdown:
        require_new(options.markdown, "--markdown")
    module = importlib.import_module(VERIFICATIONS[options.what])
    rows = module.verify(options.tasks, options.seed)
    if options.markdown:
        write_atomically(options.markdown, module.table(rows))
    return [dataclasses.asdict(row) | {"agrees": row.agrees} for row in rows]


def doctor(options: Options) -> Records:
    """Check this machine and this installation, or what a device computes."""
    if options.device is None:
        return [dataclasses.asdict(check) for check in check_all()]
    from vla_crl.cli.device_check import check_device

    return [dataclasses.asdict(check) for check in check_device(options.device)]
