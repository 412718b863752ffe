import pytest

from vla_crl.continual.demonstrated import Demonstrated
from vla_crl.errors import ConfigError
from vla_crl.testing import fake_suite


def test_a_task_is_demonstrated_by_itself_and_once():
    suite = fake_suite(train=("red", "green"), heldout=("blue",))
    demonstrated = Demonstrated(suite, image_size=16, num_threads=1, seed=0)
    found = demonstrated("reach_green", 3)
    assert found.num_episodes == 3
    assert found.instructions == (suite.tasks[suite.task_index("reach_green")].instruction,)
    assert found.episode_success.all()
    assert demonstrated("reach_green", 3) is found
    assert demonstrated("reach_green", 2) is not found
    with pytest.raises(ConfigError, match="unknown task 'reach_gren'. Did you mean 'reach_green'"):
        demonstrated("reach_gren", 3)
