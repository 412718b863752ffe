"""The example of docs/writing_a_head.md does what the page says."""

import re
from pathlib import Path

import pytest

from vla_crl.contracts import ARM
from vla_crl.errors import SpecError
from vla_crl.models.checkpoint import build_policy
from vla_crl.testing import check_head

ROOT = Path(__file__).parents[2]


@pytest.fixture
def code() -> str:
    page = (ROOT / "docs" / "writing_a_head.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]


@pytest.fixture
def careful(own_folder):
    """Return a function that builds the page's policy with some code."""

    def build(code: str):
        (own_folder / "my_heads.py").write_text(code)
        (own_folder / "policies").mkdir()
        preset = (ROOT / "policies" / "tiny_gaussian.toml").read_text()
        kind = 'kind = "my_heads:CarefulHead"'
        preset = preset.replace('kind = "gaussian"', kind)
        (own_folder / "policies" / "careful.toml").write_text(preset)
        return build_policy("careful", embodiment=ARM)

    return build


def test_the_head_of_the_page_keeps_the_contract(careful, code):
    policy = careful(code)
    assert policy.exploration == {"std": 0.3}
    check_head(policy)


def test_who_forgets_to_declare_what_explores_is_told(careful, code):
    line = '    exploration_parameters: ClassVar = ("caution",)\n'
    assert line in code
    told = "'caution.weight' gets a gradient from density, but none from imitation: name it, or how"
    with pytest.raises(SpecError, match=told):
        check_head(careful(code.replace(line, "")))


def test_the_mistake_of_the_page_is_told_as_it_says(careful, code):
    wrong = code.replace(
        "self.caution = nn", "self.start_std = config.std\n        self.caution = nn"
    ).replace("self.config.std *", "self.start_std *")
    with pytest.raises(SpecError, match="'std' changes nothing; sample reads self.config each ti"):
        check_head(careful(wrong))
