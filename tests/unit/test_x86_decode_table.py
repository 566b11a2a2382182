"""docs/decode-table.md is what the tables of forms say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "docs").is_dir() or not (ROOT / "csrc" / "x86" / "forms.def").exists():
    pytest.skip("this copy of the tree has no docs or no C sources", allow_module_level=True)
sys.path.insert(0, str(ROOT / "scripts"))
import decode_table  # noqa: E402


def test_page_is_current() -> None:
    """Wrong: a form was added or changed and the page was not written again (run scripts/decode_table.py)."""
    assert decode_table.OUTPUT.read_text(encoding="utf-8") == decode_table.render(), "run scripts/decode_table.py"


def test_every_op_has_a_file() -> None:
    """Wrong: the page cannot say where an instruction is executed."""
    files = decode_table.op_files()
    assert {form.op for form in decode_table.forms()} - set(files) == set()


def test_every_form_has_a_test() -> None:
    """Wrong: a form was added that nothing executes in a test, or the page names a test that is gone."""
    named = {decode_table.tests_of(form) for form in decode_table.forms()}
    assert "–" not in named
    assert all((ROOT / "tests" / "unit" / name).exists() for name in named - {"lockstep", "unicorn"})
