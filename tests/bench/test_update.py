from pathlib import Path

import pytest

from vla_crl.bench.update import bench_update
from vla_crl.errors import ConfigError
from vla_crl.models.heads.head import HEADS


def test_update_from_stored_contexts_is_measured_against_recomputing_them():
    (record,) = bench_update(num_steps=2, num_slots=8, num_epochs=2, num_repeats=1)
    assert record.name == "update.stored_context"
    assert record.unit == "samples/s"
    assert record.peer == "backbone recomputed in every epoch"
    assert record.peer_value is not None
    assert record.ratio == pytest.approx(record.value / record.peer_value)
    assert record.value > record.peer_value > 0.0
    assert record.goal == 3.0


PRESET = """
image_size = 32
vocabulary = ["reach", "red"]
max_words = 5
insulation = "none"
value_width = 8

[backbone]
vision_width = 12
num_vision_heads = 2
vision_mlp_width = 16
width = 16
num_layers = 2
num_heads = 2
num_kv_heads = 2
mlp_width = 24

[head]
"""


@pytest.mark.parametrize("kind", HEADS)
def test_updates_of_every_head_can_be_measured(kind: str, tmp_path: Path):
    preset = tmp_path / "mine.toml"
    preset.write_text(f'{PRESET}kind = "{kind}"\n', encoding="utf-8")
    sizes = {"num_steps": 1, "num_slots": 4, "num_epochs": 1, "num_repeats": 1}
    (record,) = bench_update(policy=str(preset), **sizes)
    assert record.value > 0.0
    assert record.goal is None
    is_backbone_trained = kind in ("parallel", "tokens")
    assert (record.name == "update.recomputed_context") == is_backbone_trained
    assert (record.peer is None) == is_backbone_trained


def test_a_preset_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match=r"unknown policy 'tyni'. Did you mean 'tiny'\?"):
        bench_update(policy="tyni")
