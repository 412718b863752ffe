"""What the settings of a policy are, told without its weights."""

from dataclasses import replace
from pathlib import Path

from vla_crl.catalog import list_policies, policy_path
from vla_crl.config import from_mapping, load_toml, to_mapping
from vla_crl.models.checkpoint import ADAPTER_FILE, POLICY_FILE
from vla_crl.models.checkpoint_records import AdapterRecord, PolicyRecord, read_record
from vla_crl.models.policy import PolicyConfig


def policy_config(path_or_preset: str | Path, base: str | Path | None = None) -> PolicyConfig:
    """Return the settings of a preset, or of a checkpoint.

    Args:
        path_or_preset: As of `load_policy`.
        base: Likewise.

    Raises:
        CheckpointError: A record is missing or damaged.
        ConfigError: There is no such preset.
    """
    path = Path(path_or_preset)
    if str(path_or_preset) in list_policies() or not path.is_dir():
        return load_toml(PolicyConfig, policy_path(str(path_or_preset)))
    if not (path / ADAPTER_FILE).is_file():
        return read_record(PolicyRecord, path / POLICY_FILE).config
    record = read_record(AdapterRecord, path / ADAPTER_FILE)
    from_here = path / record.base_from_here if record.base_from_here else None
    config = policy_config(base or (from_here if from_here and from_here.is_dir() else record.base))
    plain = to_mapping(config.head) | record.exploration
    return replace(config, head=from_mapping(type(config.head), plain, str(path / ADAPTER_FILE)))
