"""What the JSON files of policies and adapters say."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vla_crl.config import Settings, from_mapping
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.reading import read_object, shown
from vla_crl.files.state_dicts import require_part
from vla_crl.models.policy import PolicyConfig
from vla_crl.models.routes import BankRecord

FORMAT = 3
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class PolicyRecord(Settings):
    """What policy.json says."""

    format: int
    config: PolicyConfig
    card: dict[str, Any]
    adapters: BankRecord = field(default_factory=BankRecord)


@dataclass(frozen=True, kw_only=True)
class AdapterRecord(Settings):
    """What adapter.json says."""

    format: int
    adapters: BankRecord
    base: str
    """Preset or folder of the policy that the adapters are of."""
    base_sha256: str
    """Its `base_fingerprint`."""
    base_from_here: str | None = None
    """Its folder as seen from the adapters'."""
    pictures: str | None = None
    """As in `PolicyConfig`; None: those of the base."""
    exploration: dict[str, Any] = field(default_factory=dict)
    """How actions are sampled, see `ActionHead.exploration`."""


def read_record(record_class: type[Record], path: Path) -> Record:
    """Read one of these files.

    Raises:
        CheckpointError: It is missing, damaged or of another version.
    """
    require_part(path)
    try:
        content = read_object(path)
    except ConfigError as error:
        raise CheckpointError(f"{error}; copy it again") from error
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {shown(content.get('format'))}, expected {FORMAT}; no other is read. "
            "Make the checkpoint again (vla-crl pretrain or train), or use the version that wrote "
            "it"
        )
    try:
        return from_mapping(record_class, content, str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error} (written by another version of the policy?)") from error
