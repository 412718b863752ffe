from pathlib import Path

import pytest
import torch

from vla_crl.errors import CheckpointError, SpecError
from vla_crl.files.state_dicts import join_states, load_tensors, part_of, require_like, save_tensors


def test_parts_are_joined_by_name_and_taken_out_again() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    inner = join_states({"a": {"x": one}, "b": {}})
    joined = join_states({"lane1": inner, "lane10": {"x": two}})
    assert list(joined) == ["lane1/a/x", "lane10/x"]
    assert part_of(joined, "lane1") == {"a/x": one}
    assert part_of(part_of(joined, "lane1"), "a") == {"x": one}
    assert part_of(joined, "lane") == part_of(joined, "b") == {}


def test_tensors_that_share_memory_are_kept_whole(tmp_path: Path) -> None:
    memory = torch.arange(4.0).reshape(2, 2)
    save_tensors({"all": memory, "turned": memory.T, "row": memory[0]}, tmp_path / "a")
    loaded = load_tensors(tmp_path / "a")
    assert loaded["turned"].tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert loaded["row"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a: cannot be read .*; copy the whole"),
        (b"junk", "a is truncated or not a safetensors"),
    ],
)
def test_a_file_that_holds_no_tensors_is_told(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_tensors(tmp_path / "a")


OWN = {"w": torch.zeros(2), "n": torch.zeros((), dtype=torch.int64)}


def test_tensors_like_the_own_ones_are_taken() -> None:
    require_like({"w": torch.ones(2), "n": torch.tensor(3)}, OWN, "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": torch.ones(3)}, r"file: 'w' has shape \(3,\), expected \(2,\)"),
        ({"w": torch.ones(2, dtype=torch.bool)}, "file: 'w' is of type bool, expected float32"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "'w' is of type complex64, expected float32"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "'w' is of type int64, expected float32"),
        ({"w": torch.ones(2, dtype=torch.float64)}, "'w' is of type float64, expected float32"),
        ({"n": torch.tensor(3.0)}, "'n' is of type float32, expected int64"),
        (
            {"w": torch.tensor([1.0, torch.nan])},
            "'w' has 1 numbers of 2 that are not finite, first nan",
        ),
        ({"x": torch.ones(1)}, r"file: 'x' is unknown \(1 tensors in all\)"),
    ],
)
def test_tensors_unlike_the_own_ones_are_refused(
    changes: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        require_like({**OWN, **changes}, OWN, "file")


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(SpecError, match=r"file: 'n' is missing \(2 tensors in all\)"):
        require_like({}, OWN, "file")
