"""docs/config-keys.md is what the parser's tables say."""

import importlib.util
from pathlib import Path

from xenlike.toolstack.config import KEYS

ROOT = Path(__file__).resolve().parents[2]


def _script():
    spec = importlib.util.spec_from_file_location("config_table", ROOT / "scripts" / "config_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current():
    """Wrong if a key was added or changed and the reference was not written again (run scripts/config_table.py)."""
    assert (ROOT / "docs" / "config-keys.md").read_text(encoding="utf-8") == _script().render()


def test_the_reference_has_a_row_for_every_key():
    """Wrong if the rows do not come from the table, or a cell breaks out of its row."""
    rows = [line for line in _script().render().splitlines() if line.startswith("| `")]
    for name in KEYS:
        row = next(line for line in rows if line.startswith(f"| `{name}` |"))
        assert row.replace("\\|", "").count("|") == 6, row
