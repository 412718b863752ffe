"""LIBERO's pictures by both renderers, as records."""

import pytest

from vla_crl.bench import libero
from vla_crl.errors import ConfigError

pytestmark = pytest.mark.render


@pytest.mark.slow
def test_records_tell_likeness_by_camera_and_the_speed_of_both(libero_cache):
    records = libero.bench_libero("libero_object", sizes=(64,))
    assert [record.name for record in records] == [
        "libero.libero_object.64x64.agentview",
        "libero.libero_object.64x64.robot0_eye_in_hand",
        "libero.libero_object.64x64.drawn",
    ]
    *likeness, speed = records
    assert all(60.0 < record.value < 100.0 for record in likeness)
    assert {record.unit for record in likeness} == {"% SSIM"}
    assert speed.unit == "observations/s"
    assert speed.ratio is not None
    assert speed.ratio > 1.0
    assert all((record.peer or "").startswith("GL: ") for record in records)


def test_pictures_of_another_backend_are_refused():
    with pytest.raises(ConfigError, match="expected one of LIBERO, such as libero_object"):
        libero.bench_libero("tabletop_object")
