"""Checkpoints of a policy that is being trained: whatever was trained or added."""

from pathlib import Path

from vla_crl.config import differing_settings, to_mapping
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.files.checksums import require_undamaged
from vla_crl.files.state_dicts import load_tensors
from vla_crl.models.adapters import is_base_trained
from vla_crl.models.checkpoint import (
    MODEL_FILE,
    POLICY_FILE,
    VLM_FOLDER,
    arrange_adapters,
    load_adapter,
    save_adapter,
    save_policy,
    write_weights,
)
from vla_crl.models.checkpoint_records import PolicyRecord, read_record
from vla_crl.models.policy import VLAPolicy


def save_checkpoint(policy: VLAPolicy, directory: str | Path, base: str) -> None:
    """Write whatever was trained or added: the adapters, or the whole policy if its base was.

    Args:
        policy: As it is after some training, or is to be trained.
        directory: Made if missing.
        base: Preset or checkpoint directory of the policy before.

    Raises:
        CheckpointError: Its base was trained and is held in fewer bits than were loaded.
    """
    if is_base_trained(policy) or not policy.adapters.names:
        save_policy(policy, directory)
    else:
        save_adapter(policy, directory, base)


def restore(policy: VLAPolicy, directory: str | Path) -> None:
    """Bring a policy to what `save_checkpoint` wrote of it later.

    Args:
        policy: With the weights that it then began with, and the same settings.
        directory: Of the checkpoint.

    Raises:
        CheckpointError: A file is missing, damaged or does not fit the policy.
    """
    directory = Path(directory)
    if not (directory / POLICY_FILE).is_file():
        load_adapter(policy, directory)
        return
    record = read_record(PolicyRecord, directory / POLICY_FILE)
    tensors = load_tensors(directory / MODEL_FILE)
    require_undamaged(directory, POLICY_FILE, MODEL_FILE, f"{VLM_FOLDER}/")
    ours, theirs = to_mapping(policy.config), to_mapping(record.config)
    if differing := differing_settings(ours, theirs):
        key, (our, their) = next(iter(differing.items()))
        raise CheckpointError(
            f"{directory}: is of another policy: its {key} is {their!r}, expected {our!r}; take a "
            "checkpoint of the same run"
        )
    try:
        arrange_adapters(policy, record.adapters)
    except ConfigError as error:
        raise CheckpointError(f"{directory} does not fit the policy: {error}") from error
    write_weights(policy, tensors, directory)
