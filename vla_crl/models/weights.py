"""Which weights a policy has, as numbers that change with any of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from vla_crl.config import to_mapping
from vla_crl.models.lora import BaseWeights
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.sites import light_names


def remember_base(policy: VLAPolicy, tensors: Mapping[str, Tensor]) -> BaseWeights:
    """Take the fingerprint of the weights that adapters leave alone.

    Args:
        policy: With these weights.
        tensors: The same as they lie on disk, before they were brought to another precision.
    """
    policy.base = BaseWeights(_sha256(policy, tensors), _bit_sums(policy))
    return policy.base


def base_fingerprint(policy: VLAPolicy) -> str | None:
    """Return a SHA-256 of the weights that adapters leave alone, the value head left out.

    It is that of the files the policy was loaded from, taken once: a backbone has gigabytes. A
    policy that was built has that of its weights when first asked for.

    Returns:
        None where one of these weights has been changed since.
    """
    base = policy.base or remember_base(policy, policy.state_dict())
    return base.sha256 if base.sums == _bit_sums(policy) else None


def changed_weights(policy: VLAPolicy) -> set[str]:
    """Return the names of base weights that are, or were when last asked, not as when loaded."""
    base = policy.base or remember_base(policy, policy.state_dict())
    sums = _bit_sums(policy)
    base.changed.update(name for name in sums if sums[name] != base.sums.get(name))
    return set(base.changed)


def weights_fingerprint(policy: VLAPolicy) -> str:
    """Return the beginning of a SHA-256 of all weights, and of which adapters act when.

    Where weights of the base have changed since they were loaded, those of today count.
    """
    digest = hashlib.sha256(
        (base_fingerprint(policy) or _sha256(policy, policy.state_dict())).encode()
    )
    own = policy.state_dict()
    _add_to(digest, ((name, own[name]) for name in light_names(policy)))
    if policy.adapters.names:
        digest.update(json.dumps(to_mapping(policy.adapters.record()), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _base_tensors(policy: VLAPolicy, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    light = light_names(policy)
    return ((name, tensor) for name, tensor in tensors.items() if name not in light)


def _sha256(policy: VLAPolicy, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    _add_to(digest, _base_tensors(policy, tensors))
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
    for name, tensor in _base_tensors(policy, policy.state_dict()):
        numbers = tensor.flatten().view(torch.uint8)
        words = len(numbers) // 8 * 8
        names.append(name)
        sums.append(numbers[:words].view(torch.int64).sum() + numbers[words:].sum())
    return dict(zip(names, torch.stack(sums).tolist(), strict=True))
