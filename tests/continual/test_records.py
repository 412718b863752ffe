from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vla_crl.continual.records import Layout, RecordFile, Records
from vla_crl.errors import CheckpointError, SpecError
from vla_crl.files.checksums import find_damage
from vla_crl.rows import Rows


@dataclass(frozen=True)
class Inner(Rows):
    mask: Tensor
    half: Tensor


@dataclass(frozen=True)
class Chunk(Rows):
    images: Tensor
    actions: Tensor
    step: Tensor
    nothing: Rows | None
    inner: Inner


def make_chunks(num: int = 5) -> Chunk:
    draw = torch.Generator().manual_seed(num)
    return Chunk(
        torch.randint(0, 256, (num, 2, 8, 8, 3), dtype=torch.uint8, generator=draw),
        torch.randn(num, 4, 3, generator=draw),
        torch.arange(num),
        None,
        Inner(torch.arange(4 * num).reshape(num, 4) % 3 == 0, torch.ones(num, 2).bfloat16()),
    )


def assert_same(one: Rows, other: Rows) -> None:
    ours, theirs = one.flatten(), other.flatten()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def test_rows_come_back_bit_for_bit():
    chunks = make_chunks()
    records = Records.of(chunks)
    assert_same(chunks.unflatten(records.layout.decode(records.data)), chunks)
    assert_same(chunks.unflatten(records.layout.decode(records.data[3:4])), chunks[3])


def test_pictures_are_compressed_and_nothing_else_is():
    chunks = Chunk(
        torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, 4, 3),
        torch.zeros(1, dtype=torch.int64), None,
        Inner(torch.zeros(1, 4) > 0, torch.zeros(1, 2).bfloat16()),
    )  # fmt: skip
    (record,) = Records.of(chunks).data
    # 12 numbers of 4 bytes, one of 8, 4 flags, 2 numbers of 2, and the length of the pictures.
    assert 48 + 8 + 4 + 4 + 4 < len(record) < 200


def test_rows_that_are_views_are_kept_as_they_are():
    chunks = make_chunks()
    turned = Chunk(chunks.images, chunks.actions.transpose(1, 2), chunks.step, None, chunks.inner)[
        torch.tensor([4, 0])
    ]
    records = Records.of(turned)
    assert_same(turned.unflatten(records.layout.decode(records.data)), turned)


def test_a_column_of_a_wider_table_is_kept():
    chunks = Inner(torch.zeros(3, 4) > 0, torch.arange(12.0).reshape(4, 3).T[:, :1])
    records = Records.of(chunks)
    assert_same(chunks.unflatten(records.layout.decode(records.data)), chunks)


def test_a_file_gives_records_one_by_one_and_has_a_checksum(tmp_path: Path):
    records = Records.of(make_chunks())
    path = tmp_path / "memory" / "000000.safetensors"
    RecordFile.write(path, records)
    file = RecordFile(path)
    assert (len(file), file.layout) == (5, records.layout)
    assert [file.read(row) for row in (4, 0)] == [records.data[4], records.data[0]]
    assert find_damage(path.parent, path.name) is None


def test_records_survive_as_tensors():
    records = Records.of(make_chunks())
    assert Records.from_tensors(records.as_tensors(), "state") == records
    none = Records(records.layout, [])
    assert Records.from_tensors(none.as_tensors(), "state") == none


def test_rows_of_other_columns_are_refused():
    layout = Records.of(make_chunks()).layout
    with pytest.raises(
        SpecError, match=r'memory: rows of the columns \[\["step", "int64", \[\]\]\]'
    ):
        layout.encode({"step": torch.arange(3)})
    with pytest.raises(SpecError, match="memory: 'z' is of type torch.complex64, expected one of"):
        Layout.of({"z": torch.zeros(1, dtype=torch.complex64)})


def test_damage_is_told(tmp_path: Path):
    records = Records.of(make_chunks())
    with pytest.raises(CheckpointError, match="memory: a record is damaged"):
        records.layout.decode([records.data[0][:-9]])
    tensors = records.as_tensors()
    with pytest.raises(CheckpointError, match="state: 'sizes' is missing"):
        Records.from_tensors({n: t for n, t in tensors.items() if n != "sizes"}, "state")
    with pytest.raises(CheckpointError, match=r"state: has \d+ bytes, expected \d+"):
        Records.from_tensors(tensors | {"rows": tensors["rows"][1:]}, "state")
    with pytest.raises(CheckpointError, match="state: its columns are not readable"):
        Records.from_tensors(tensors | {"layout": tensors["layout"][3:]}, "state")
    path = tmp_path / "000000.safetensors"
    with pytest.raises(CheckpointError, match="000000.safetensors"):
        RecordFile(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="000000.safetensors: holds no records"):
        RecordFile(path)
