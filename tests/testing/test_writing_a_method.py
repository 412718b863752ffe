"""The example of docs/writing_a_method.md does what the page says, and prints what it says."""

import importlib
import re
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from vla_crl.errors import SpecError
from vla_crl.testing import check_method

PAGE = (Path(__file__).parents[2] / "docs" / "writing_a_method.md").read_text(encoding="utf-8")
METHOD, STATE, HELPS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(TOLD,) = re.findall(r"^SpecError: (.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
(PRINTED,) = re.findall(r"^(sequential \[.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_method_of_the_page_forgets_its_anchor_as_the_page_says(own_folder: Path):
    (own_folder / "my_methods.py").write_text(METHOD, encoding="utf-8")
    with pytest.raises(SpecError, match=re.escape(TOLD.replace("\n", " "))):
        check_method("my_methods:Anchor")


def test_with_its_state_it_keeps_the_contract(own_folder: Path):
    whole = f"{METHOD}\n{textwrap.indent(STATE, '    ')}"
    (own_folder / "my_methods.py").write_text(whole, encoding="utf-8")
    check_method("my_methods:Anchor")


def test_methods_help_as_much_as_the_page_says(own_folder: Path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(own_folder))
    (own_folder / "does_it_help.py").write_text(HELPS, encoding="utf-8")
    sys.path.insert(0, str(own_folder))
    importlib.import_module("does_it_help")
    found = [re.findall(r"[\w.]+", line) for line in capsys.readouterr().out.splitlines()]
    expected = [re.findall(r"[\w.]+", line) for line in PRINTED.splitlines()]
    assert [name for name, *_ in found] == [name for name, *_ in expected]
    for (_, *rates), (_, *said) in zip(found, expected, strict=True):
        assert [*map(float, rates)] == pytest.approx([*map(float, said)], abs=0.05)
