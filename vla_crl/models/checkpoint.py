"""Policies and adapters on disk: JSON for settings, safetensors for numbers, never pickle.

A policy is a directory with `policy.json` (format, config with vocabulary, adapters, card) and
`model.safetensors`; where its backbone began as a pretrained model also `vlm/`, with that model's
config, tokenizer and image processor, so that loading asks no network. An adapter is a directory
with `adapter.json`, which names its base policy, and `adapter.safetensors`: all adapters, their
router and the value head. Both tell which adapters act in which task. A run keeps for every stage
what was trained or added: adapters, or the whole policy where weights of the base were trained.
Checksums of all these files lie beside them, in `SHA256SUMS`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_crl.catalog import OWN_FOLDERS, list_policies, policy_path
from vla_crl.compute import Dtype
from vla_crl.config import load_toml, save_json
from vla_crl.contracts import Embodiment
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files.checksums import SUMS_FILE, require_undamaged, write_sums
from vla_crl.files.reading import require_file
from vla_crl.files.state_dicts import load_tensors, require_like, save_tensors
from vla_crl.models.adapters import (
    adapter_state_dict,
    load_adapter_state_dict,
    train_adapters,
)
from vla_crl.models.checkpoint_records import FORMAT, AdapterRecord, PolicyRecord, read_record
from vla_crl.models.policy import PolicyConfig, VLAPolicy
from vla_crl.models.routes import BankRecord
from vla_crl.models.sizes import require_room
from vla_crl.models.weights import base_fingerprint, remember_base

POLICY_FILE, MODEL_FILE = "policy.json", "model.safetensors"
VLM_FOLDER = "vlm"
ADAPTER_FILE, ADAPTER_MODEL_FILE = "adapter.json", "adapter.safetensors"


def save_policy(
    policy: VLAPolicy, directory: str | Path, card: Mapping[str, Any] | None = None
) -> None:
    """Write the policy in float32, with its adapters if it has any.

    Args:
        policy: To be written.
        directory: Made if missing; other files in it stay.
        card: What else a reader should know, e.g. training data and success; JSON types only.

    Raises:
        CheckpointError: Its backbone is held in fewer bits than were loaded, so that the weights
            would lose precision with nobody noticing.
    """
    if policy.backbone.weight_dtype != torch.float32:
        raise CheckpointError(
            f"{directory}: the backbone is held in {policy.backbone.weight_dtype}, rounded; load "
            "the policy in float32 to save it whole, or save its adapters"
        )
    directory = _made(directory)
    _clear(directory, ADAPTER_FILE, ADAPTER_MODEL_FILE)
    save_tensors(policy.state_dict(), directory / MODEL_FILE)
    if policy.backbone.vlm.is_pretrained:
        policy.backbone.vlm.save_files(directory / VLM_FOLDER)
    record = PolicyRecord(
        format=FORMAT,
        config=policy.config,
        adapters=policy.adapters.record(),
        card=dict(card or {}),
    )
    save_json(record, directory / POLICY_FILE)
    vlm_files = (file for file in (directory / VLM_FOLDER).rglob("*") if file.is_file())
    names = (str(file.relative_to(directory)) for file in vlm_files)
    write_sums(directory, POLICY_FILE, MODEL_FILE, *names)


def build_policy(
    preset: str | Path,
    *,
    embodiment: Embodiment | None = None,
    things: Sequence[str] = (),
    pictures: str = "",
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> VLAPolicy:
    """Build the architecture of a preset with random weights, a pretrained backbone's excepted.

    All weights are float32, to be trained, and the same on every device.

    Args:
        preset: Name or file.
        embodiment: Of the suite to be learnt, for a preset that names none.
        things: Likewise.
        pictures: Likewise.
        device: Where the weights go; nothing else is tried.
        dtype: In which the backbone computes.

    Raises:
        ConfigError: There is no such preset, its parts do not fit together, or torch cannot use
            the device.
    """
    _check_device(device)
    path = policy_path(str(preset))
    config = load_toml(PolicyConfig, path)
    config = replace(
        config,
        embodiment=config.embodiment or embodiment,
        things=config.things or tuple(things),
        pictures=config.pictures or pictures,
    )
    try:
        require_room(config, str(preset))
        return VLAPolicy(config, dtype=dtype).to(device)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@torch.inference_mode(False)  # or its weights could never be trained
def load_policy(
    path_or_preset: str | Path,
    *,
    base: str | Path | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    is_trained: bool = False,
) -> VLAPolicy:
    """Load a checkpoint directory, or the one that ships with a preset.

    The weights of `policies/<preset>.toml` lie beside it in `policies/<preset>/`. Where a
    checkpoint of a run (`checkpoints/stage_3`) holds adapters, its base policy is loaded first.

    Args:
        path_or_preset: Checkpoint directory, name of a preset in `policies/`, or a preset's file.
        base: Where the base policy of a run's checkpoint lies now, if it has been moved.
        device: Where the weights go; nothing else is tried.
        dtype: In which the backbone computes, and its weights are held: in bfloat16 they act and
            serve adapters, but cannot be trained themselves nor saved.
        is_trained: Whether the weights are to be trained themselves: they are float32 then, and
            adapters are refused.

    Raises:
        CheckpointError: A file is missing, damaged or does not fit.
        ConfigError: There is no such preset, it is some other file, or torch cannot use the
            device.
    """
    _check_device(device)
    return _load(path_or_preset, base, device=device, dtype=dtype, is_trained=is_trained, above=())


def _load(
    path_or_preset: str | Path,
    base: str | Path | None,
    *,
    device: str,
    dtype: Dtype,
    is_trained: bool = False,
    above: tuple[Path, ...],
) -> VLAPolicy:
    """Load what `load_policy` does.

    Args:
        path_or_preset: As there.
        base: Likewise.
        device: Likewise.
        dtype: Likewise.
        is_trained: Likewise.
        above: Adapters whose base it is.
    """
    is_preset = str(path_or_preset) in list_policies()  # also where a folder of that name lies
    path = Path(path_or_preset)
    if not is_preset and path.exists() and not path.is_dir() and path.suffix != ".toml":
        require_file(path)
        raise ConfigError(
            f"policy '{path_or_preset}' is a file, expected a checkpoint's folder, the name of a "
            "preset or a preset's .toml"
        )
    if is_preset or not path.is_dir():
        path = policy_path(str(path_or_preset)).with_suffix("")
        if not path.is_dir():
            raise CheckpointError(
                f"policy '{path_or_preset}' has no weights at {path}; make them with "
                f"vla-crl pretrain RECIPE --policy {path_or_preset} --output {path}"
            )
    if (path / ADAPTER_FILE).is_file():
        record = read_record(AdapterRecord, path / ADAPTER_FILE)
        if is_trained:
            merged = ", or what 'vla-crl export --merge' makes of this one"
            raise CheckpointError(
                f"{path}: holds adapters of the policy '{record.base}', but all weights are to "
                f"be trained; name that policy{merged if record.adapters.is_mergeable else ''}"
            )
        above = (*above, path.resolve())
        policy = _load_base(record, base, device=device, dtype=dtype, above=above)
        load_adapter(policy, path)
        return policy
    if base is not None:
        raise ConfigError(f"policy '{path_or_preset}' has no base policy; leave out '{base}'")
    return _load_whole(path, device, dtype, is_trained=is_trained)


def _load_whole(path: Path, device: str, dtype: Dtype, *, is_trained: bool) -> VLAPolicy:
    """Load what `save_policy` wrote."""
    if not (path / POLICY_FILE).is_file():
        raise CheckpointError(
            f"{path}: no checkpoint, it has neither {POLICY_FILE} nor {ADAPTER_FILE}; of a run "
            "name a stage, RUN/checkpoints/stage_1"
        )
    record, files = read_record(PolicyRecord, path / POLICY_FILE), path / VLM_FOLDER
    if is_trained and record.adapters.layouts:
        raise CheckpointError(
            f"{path}: the policy has adapters, but all weights are to be trained; take one without"
        )
    tensors = load_tensors(path / MODEL_FILE)
    require_undamaged(path, POLICY_FILE, MODEL_FILE, f"{VLM_FOLDER}/")
    try:
        require_room(record.config, str(path / POLICY_FILE))
        policy = VLAPolicy(record.config, vlm_files=files, dtype=dtype, holds_dtype=not is_trained)
        arrange_adapters(policy, record.adapters)
    except ConfigError as error:
        raise CheckpointError(f"{error} (written by another version of the policy?)") from error
    write_weights(policy, tensors, path)
    policy = policy.to(device).eval()
    remember_base(policy, tensors)
    return policy


def arrange_adapters(policy: VLAPolicy, record: BankRecord) -> None:
    """Give a policy the adapters of a record; of these what acts is trainable then.

    Raises:
        ConfigError: They do not fit it.
    """
    policy.adapters.arrange(record)
    if record.layouts:
        train_adapters(policy, policy.adapters.scales)


def write_weights(policy: VLAPolicy, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write all tensors of a checkpoint into a policy with the same adapters.

    Raises:
        CheckpointError: They do not fit it.
    """
    try:
        # On disk all is float32, whatever the backbone is held in here.
        own = {name: tensor.to("meta") for name, tensor in policy.state_dict().items()}
        own = {name: t.float() if t.is_floating_point() else t for name, t in own.items()}
        require_like(tensors, own, str(path / MODEL_FILE))
    except SpecError as error:
        raise CheckpointError(
            f"{error}; it is damaged, or of another {POLICY_FILE} than the one beside it: copy "
            "both from the same checkpoint"
        ) from error
    policy.load_state_dict(tensors)


def _load_base(
    record: AdapterRecord,
    named: str | Path | None,
    *,
    device: str,
    dtype: Dtype,
    above: tuple[Path, ...],
) -> VLAPolicy:
    """Load the policy on which adapters were trained, from the first place where it is.

    Args:
        record: What they say of themselves.
        named: Where it lies as the user says; None: where it was when they were saved, seen from
            them and absolutely.
        device: As of `load_policy`.
        dtype: Likewise.
        above: Folders of the adapters, the last one, and of those whose base they are.
    """
    tried: list[str] = []
    places, path = [named or record.base], above[-1]
    if not named and record.base_from_here is not None:
        places.insert(0, os.path.normpath(path / record.base_from_here))
    for place in dict.fromkeys(map(str, places)):
        if place not in list_policies() and not Path(place).exists():
            tried.append(f"'{place}' is not there")
            continue
        if Path(place).resolve() in above:
            tried.append(f"'{place}' is itself" + ", by way of others" * (len(above) > 1))
            continue
        try:
            policy = _load(place, None, device=device, dtype=dtype, above=above)
        except (CheckpointError, ConfigError) as error:
            tried.append(str(error))
            continue
        if base_fingerprint(policy) == record.base_sha256:
            return policy
        tried.append(f"'{place}' has other weights than those that it was trained on")
    raise CheckpointError(
        f"{path}: its base policy cannot be loaded: {'; '.join(tried)}. Put it back (a preset of "
        f"your own: list its folder in {OWN_FOLDERS}), or name its place with --base (in Python "
        "load_policy(..., base=PLACE))"
    )


def read_card(directory: str | Path) -> dict[str, Any]:
    """Return the card that `save_policy` wrote.

    Raises:
        CheckpointError: The file is missing or broken.
    """
    return read_record(PolicyRecord, Path(directory) / POLICY_FILE).card


def save_adapter(policy: VLAPolicy, directory: str | Path, base: str) -> None:
    """Write only the adapters, their router, the value head, and what acts when.

    Args:
        policy: Has adapters.
        directory: Made if missing.
        base: Preset or checkpoint directory of the policy without them.

    Raises:
        CheckpointError: The policy has no adapters, or other weights have changed since.
    """
    if not policy.adapters.names:
        raise CheckpointError(f"{directory}: the policy has no adapters; use save_policy")
    if (sha256 := base_fingerprint(policy)) is None:
        raise CheckpointError(
            f"{directory}: weights outside of adapters and value head have changed since '{base}' "
            "was loaded, and a checkpoint of adapters does not hold them; use save_checkpoint"
        )
    directory = _made(directory)
    _clear(directory, POLICY_FILE, MODEL_FILE)
    save_tensors(adapter_state_dict(policy), directory / ADAPTER_MODEL_FILE)
    record = AdapterRecord(
        format=FORMAT,
        adapters=policy.adapters.record(),
        base=base,
        base_sha256=sha256,
        pictures=policy.config.pictures,
        exploration=policy.exploration,
    )
    if base not in list_policies() and Path(base).exists():
        place = Path(base).resolve()
        from_here = os.path.relpath(place, directory.resolve())
        record = replace(record, base=str(place), base_from_here=from_here)
    save_json(record, directory / ADAPTER_FILE)
    write_sums(directory, ADAPTER_FILE, ADAPTER_MODEL_FILE)


def load_adapter(policy: VLAPolicy, directory: str | Path) -> None:
    """Load adapters into the policy they were trained on, in the place of those that it has.

    Raises:
        CheckpointError: A file is missing, damaged or does not fit the policy.
    """
    directory = Path(directory)
    record = read_record(AdapterRecord, directory / ADAPTER_FILE)
    tensors = load_tensors(directory / ADAPTER_MODEL_FILE)
    require_undamaged(directory, ADAPTER_FILE, ADAPTER_MODEL_FILE)
    if record.base_sha256 != base_fingerprint(policy):
        raise CheckpointError(
            f"{directory}: its adapters were trained on other weights than the policy's; load "
            f"'{record.base}' as it was"
        )
    try:
        arrange_adapters(policy, record.adapters)
        load_adapter_state_dict(policy, tensors)
    except (ConfigError, SpecError) as error:
        raise CheckpointError(
            f"{directory} cannot be loaded into the policy: {error}; copy it again, or take "
            "another checkpoint"
        ) from error
    pictures = policy.config.pictures if record.pictures is None else record.pictures
    policy.config = replace(policy.config, pictures=pictures)
    policy.explore(record.exploration)


def _made(directory: str | Path) -> Path:
    """Make a folder, and those above it, if it is missing."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _clear(directory: Path, *names: str) -> None:
    """Remove checksums, which are of what is replaced now, and files of the other kind."""
    for name in (SUMS_FILE, *names):
        (directory / name).unlink(missing_ok=True)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without it
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device '{device}': torch cannot use it here. {reason}") from error
