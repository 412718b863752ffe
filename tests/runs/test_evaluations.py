"""What `evaluate --output` writes."""

import json
from pathlib import Path

import pytest

from vla_crl.rollout.results import PlayedEpisode, TaskResult
from vla_crl.runs.evaluations import episodes_beside, result_rows, write_results


def test_rows_and_episodes_of_an_evaluation_lie_beside_each_other(tmp_path: Path) -> None:
    played = (PlayedEpisode(7, success=True, num_steps=12), PlayedEpisode(8, False, 48))
    results = [TaskResult("open, then close", "heldout", played)]
    path = tmp_path / "a.json"
    write_results(path, result_rows(results, {"suite": "kitchen"}), results)
    (row,) = json.loads(path.read_text())
    # Wilson's interval of 1 in 2 is .5 +- z / (2 + z^2) sqrt(1/2 + z^2 / 4) = .5 +- .40547
    assert row == {
        "task": "open, then close",
        "split": "heldout",
        "successes": 1,
        "episodes": 2,
        "low": pytest.approx(0.094531, abs=1e-6),
        "high": pytest.approx(0.905469, abs=1e-6),
        "fingerprint": {"suite": "kitchen"},
    }
    assert episodes_beside(path) == tmp_path / "a.episodes.csv"
    assert episodes_beside(path).read_text() == (
        "stage,task,state_id,success,num_steps,seed\n"
        ',"open, then close",7,1,12,0\n,"open, then close",8,0,48,0\n'
    )
