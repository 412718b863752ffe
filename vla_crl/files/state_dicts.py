"""States as flat dictionaries of tensors: of several parts, in safetensors files, checked."""

import errno
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files.reading import require_file
from vla_crl.files.writing import replacing


def join_states(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return all tensors as "part/name"."""
    return {
        f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()
    }


def part_of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return what `join_states` was given as `part`; empty if there was nothing."""
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


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

    require_part(path)
    try:
        return load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); copy it again"
        ) from error


def require_part(path: Path) -> None:
    """Check that a file of a checkpoint is there.

    Raises:
        CheckpointError: It is not, or something else is.
    """
    try:
        require_file(path)
    except ConfigError as error:
        raise CheckpointError(f"{error}; copy the whole checkpoint directory") from error


def require_like(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    """Check that tensors from outside can be written into others as they are, and are numbers.

    Args:
        tensors: From outside.
        own: What they are to be written into.
        where: Beginning of the error message.

    Raises:
        SpecError: Names, shapes or types differ, or a number is not finite.
    """
    if differing := sorted(own.keys() ^ tensors.keys()):
        what = "is missing" if differing[0] in own else "is unknown"
        raise SpecError(f"{where}: '{differing[0]}' {what} ({len(differing)} tensors in all)")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise SpecError(
                f"{where}: '{name}' has shape {tuple(tensor.shape)}, expected "
                f"{tuple(own[name].shape)}"
            )
        if tensor.dtype != own[name].dtype:
            came, expected = (str(t.dtype).removeprefix("torch.") for t in (tensor, own[name]))
            raise SpecError(f"{where}: '{name}' is of type {came}, expected {expected}")
        if not (finite := torch.isfinite(tensor)).all():
            raise SpecError(
                f"{where}: '{name}' has {int((~finite).sum())} numbers of {tensor.numel()} that "
                f"are not finite, first {tensor[~finite][0].item()}"
            )
