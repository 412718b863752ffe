"""What `vla-crl export` does; see `vla_crl.cli.commands`."""

from vla_crl.cli.commands import Options, Records, load_named_policy, require_new
from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError
from vla_crl.files.writing import new_folder


def export(options: Options) -> Records | None:
    """Write a policy as a folder that stands alone: to share it, or to run it by torch alone."""
    require_new(options.output, "--output")
    if options.policy == "expert":
        raise ConfigError("--policy expert: is a script without weights; name a policy")
    compute = ComputeConfig()
    compute.prepare()
    policy = load_named_policy(options, compute)
    from vla_crl.export.folder import export_policy

    with new_folder(options.output) as folder:
        latency = export_policy(
            policy,
            options.policy,
            folder,
            name=options.output.resolve().name,
            merge=options.merge,
            torch_export=options.torch_export,
            license_id=options.license,
        )
    print(options.output)
    return latency or None
