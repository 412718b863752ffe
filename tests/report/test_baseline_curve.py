from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vla_crl.report.baseline_curve import draw_baseline_curve, write_baseline_curve

CURVE = """num_steps,seconds,successes,episodes,training_success,training_reward
0,0.1,0,50,nan,nan
100,1.5,10,50,0.12,0.3
200,2.9,45,50,0.75,1.5
"""


def test_success_on_test_states_is_drawn_in_percent_over_steps(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    file.write_text(CURVE, encoding="utf-8")
    figure = draw_baseline_curve(file)
    assert isinstance(figure, Figure)
    training, test = figure.axes[0].lines
    assert np.array_equal(test.get_xydata(), [[0, 0], [100, 20], [200, 90]])
    assert np.allclose(np.asarray(training.get_ydata()), [np.nan, 12, 75], equal_nan=True)
    write_baseline_curve(file)
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 500
