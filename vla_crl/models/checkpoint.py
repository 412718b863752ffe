"""Policies and adapters on disk: JSON for settings, safetensors for numbers, never pickle.

A policy is a directory with `policy.json` (format, config with vocabulary, adapters, card) and
`model.safetensors`; where its backbone began as a pretrained model also `vlm/`, with that model's
config, tokenizer and image processor, so that loading asks no network. An adapter is a directory
with `adapter.json`, which names its base policy, and `adapter.safetensors`. A run keeps adapters.
"""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_crl.catalog import list_policies, policy_path
from vla_crl.compute import Dtype
from vla_crl.config import from_mapping, load_toml, save_json, to_mapping
from vla_crl.contracts import Embodiment
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files import replacing
from vla_crl.models.adapters import (
    adapter_state_dict,
    add_lora,
    load_adapter_state_dict,
)
from vla_crl.models.lora import BaseWeights, LoRAConfig
from vla_crl.models.policy import PolicyConfig, VLAPolicy

FORMAT = 2
POLICY_FILE, MODEL_FILE = "policy.json", "model.safetensors"
VLM_FOLDER = "vlm"
ADAPTER_FILE, ADAPTER_MODEL_FILE = "adapter.json", "adapter.safetensors"


def save_policy(policy: VLAPolicy, directory: Path, card: Mapping[str, Any] | None = None) -> None:
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
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(policy.state_dict(), directory / MODEL_FILE)
    if policy.backbone.vlm.is_pretrained:
        policy.backbone.vlm.save_files(directory / VLM_FOLDER)
    record = {
        "format": FORMAT,
        "config": to_mapping(policy.config),
        "lora": None if policy.lora is None else to_mapping(policy.lora),
        "card": dict(card or {}),
    }
    save_json(record, directory / POLICY_FILE)


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
        return VLAPolicy(config, dtype=dtype).to(device)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@torch.inference_mode(False)  # or its weights could never be trained
def load_policy(
    path_or_preset: str | Path, *, device: str = "cpu", dtype: Dtype = "float32"
) -> VLAPolicy:
    """Load a checkpoint directory, or the one that ships with a preset.

    The weights of `policies/<preset>.toml` lie beside it in `policies/<preset>/`. A checkpoint of
    a run (`checkpoints/stage_3`) holds adapters; its base policy is loaded first.

    Args:
        path_or_preset: Checkpoint directory, name of a preset in `policies/`, or a preset's file.
        device: Where the weights go; nothing else is tried.
        dtype: In which the backbone computes, and its weights are held: in bfloat16 they act and
            serve adapters, but cannot be trained themselves nor saved.

    Raises:
        CheckpointError: A file is missing, truncated or does not fit.
        ConfigError: There is no such preset, it is some other file, or torch cannot use the
            device.
    """
    _check_device(device)
    is_preset = str(path_or_preset) in list_policies()  # also where a folder of that name lies
    path = Path(path_or_preset)
    if not is_preset and path.is_file() and path.suffix != ".toml":
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
        base = _read_record(path / ADAPTER_FILE, "base")["base"]
        if not isinstance(base, str) or Path(base).resolve() == path.resolve():
            raise CheckpointError(
                f"{path / ADAPTER_FILE}: base is {base!r}, expected a preset or the folder of "
                "another checkpoint; copy the checkpoint again"
            )
        try:
            policy = load_policy(base, device=device, dtype=dtype)
        except (CheckpointError, ConfigError) as error:
            raise CheckpointError(f"{path}: its base policy cannot be loaded. {error}") from error
        load_adapter(policy, path)
        return policy
    if not (path / POLICY_FILE).is_file():
        raise CheckpointError(
            f"{path}: no checkpoint, it has neither {POLICY_FILE} nor {ADAPTER_FILE}; of a run "
            "name a stage, RUN/checkpoints/stage_1"
        )
    record, files = _read_record(path / POLICY_FILE, "config", "lora", "card"), path / VLM_FOLDER
    try:
        config = from_mapping(PolicyConfig, record["config"], str(path / POLICY_FILE))
        policy = VLAPolicy(config, vlm_files=files, dtype=dtype, holds_dtype=True)
        if record["lora"] is not None:
            add_lora(policy, from_mapping(LoRAConfig, record["lora"], str(path / POLICY_FILE)))
    except ConfigError as error:
        raise CheckpointError(f"{error} (written by another version of the policy?)") from error
    tensors = load_tensors(path / MODEL_FILE)
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path / MODEL_FILE} does not fit {POLICY_FILE} beside it; copy both from the same "
            f"checkpoint. {error}"
        ) from error
    policy = policy.to(device).eval()
    policy.base = BaseWeights(_sha256(tensors), _bit_sums(policy))
    return policy


def read_card(directory: Path) -> dict[str, Any]:
    """Return the card that `save_policy` wrote.

    Raises:
        CheckpointError: The file is missing or broken.
    """
    return _read_record(directory / POLICY_FILE, "card")["card"]


def save_adapter(policy: VLAPolicy, directory: Path, base: str) -> None:
    """Write only the adapters and the value head.

    Args:
        policy: Has adapters.
        directory: Made if missing.
        base: Preset or checkpoint directory of the policy without them.

    Raises:
        CheckpointError: The policy has no adapters, or other weights have changed since.
    """
    if policy.lora is None:
        raise CheckpointError(f"{directory}: the policy has no adapters; use save_policy")
    sha256 = require_base(policy, directory, base)
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(adapter_state_dict(policy), directory / ADAPTER_MODEL_FILE)
    if base not in list_policies() and Path(base).exists():
        base = str(Path(base).resolve())
    record = {
        "format": FORMAT,
        "lora": to_mapping(policy.lora),
        "base": base,
        "base_sha256": sha256,
        "pictures": policy.config.pictures,
    }
    save_json(record, directory / ADAPTER_FILE)


def load_adapter(policy: VLAPolicy, directory: Path) -> None:
    """Load adapters into the policy they were trained on, adding them if it has none.

    Raises:
        CheckpointError: A file is missing, truncated or does not fit the policy.
    """
    record = _read_record(directory / ADAPTER_FILE, "lora", "base", "base_sha256")
    if record["base_sha256"] != base_fingerprint(policy):
        raise CheckpointError(
            f"{directory}: its adapters were trained on other weights than those that "
            f"'{record['base']}' has now; restore them"
        )
    tensors = load_tensors(directory / ADAPTER_MODEL_FILE)
    try:
        config = from_mapping(LoRAConfig, record["lora"], str(directory / ADAPTER_FILE))
        if policy.lora is None:
            add_lora(policy, config)
        elif policy.lora != config:
            raise SpecError(f"the policy has {policy.lora}, the file holds {config}")
        load_adapter_state_dict(policy, tensors)
        pictures = record.get("pictures", policy.config.pictures)
        policy.config = replace(policy.config, pictures=pictures)
    except (ConfigError, SpecError) as error:
        raise CheckpointError(f"{directory} does not fit the policy: {error}") from error


def require_base(policy: VLAPolicy, directory: Path, base: str) -> str:
    """Check that a checkpoint of adapters would hold all that has changed.

    Args:
        policy: To be saved.
        directory: Where to.
        base: What was loaded.

    Returns:
        `base_fingerprint`.

    Raises:
        CheckpointError: Other weights have changed.
    """
    sha256 = base_fingerprint(policy)
    if sha256 is None:
        raise CheckpointError(
            f"{directory}: weights outside of adapters and value head have changed since '{base}' "
            "was loaded, and a checkpoint of adapters does not hold them; change adapters only"
        )
    return sha256


def base_fingerprint(policy: VLAPolicy) -> str | None:
    """Return a SHA-256 of the weights that adapters leave alone, the value head left out.

    It is that of the files the policy was loaded from, taken once: a backbone has gigabytes. A
    policy that was built has that of its weights when first asked for.

    Returns:
        None where one of these weights has been changed since.
    """
    if policy.base is None:
        policy.base = BaseWeights(_sha256(policy.state_dict()), _bit_sums(policy))
    return policy.base.sha256 if policy.base.sums == _bit_sums(policy) else None


def weights_fingerprint(policy: VLAPolicy) -> str:
    """Return the beginning of a SHA-256 of all weights: of the base, the adapters, the value head.

    Where weights of the base have changed since they were loaded, those of today count.
    """
    digest = hashlib.sha256((base_fingerprint(policy) or _sha256(policy.state_dict())).encode())
    _add_to(digest, adapter_state_dict(policy).items())
    return digest.hexdigest()[:16]


def _base_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if ".lora_" not in name and not name.startswith("value_head."):
            yield name.replace(".base_layer.", "."), tensor


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    _add_to(digest, _base_tensors(tensors))
    return digest.hexdigest()


def _add_to(digest: "hashlib._Hash", tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().flatten().numpy().data)


def _bit_sums(policy: VLAPolicy) -> dict[str, int]:
    """Return a number for each base weight that changes with it.

    It takes a tenth of the time of a SHA-256 and stays on the device. Torch's version counters
    would cost nothing, but do not see what is written through `.data`.
    """
    names, sums = [], []
    for name, tensor in _base_tensors(policy.state_dict()):
        numbers = tensor.flatten().view(torch.uint8)
        words = len(numbers) // 8 * 8
        names.append(name)
        sums.append(numbers[:words].view(torch.int64).sum() + numbers[words:].sum())
    return dict(zip(names, torch.stack(sums).tolist(), strict=True))


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without it
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device '{device}': torch cannot use it here. {reason}") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, in one step; they may share memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(copies, temporary)  # for its owner alone
        except SafetensorError as error:  # what the operating system said is in its text
            raise OSError(errno.EIO, str(error)) from error
        temporary.chmod(mode)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote.

    Raises:
        CheckpointError: The file is missing, truncated or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; copy the whole checkpoint directory") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); copy it again"
        ) from error


def _read_record(path: Path, *keys: str) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; copy the whole checkpoint directory") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or not JSON ({error}); copy it again"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        came = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise CheckpointError(
            f"{path}: format {came}, expected {FORMAT}; no other is read. Make the checkpoint "
            "again (vla-crl pretrain or train), or use the version that wrote it"
        )
    if missing := [key for key in keys if key not in record]:
        raise CheckpointError(f"{path}: {missing} missing; copy the whole checkpoint again")
    return record
