"""docs/abi-coverage.md says what the headers have now, and what they lack.

If this failed, the page would promise a structure that is gone, or still list one that has been added.
"""

from __future__ import annotations

from pathlib import Path

import abi_coverage
from conftest import RELEASE


def test_the_page_is_current(xen_include: Path) -> None:
    text = abi_coverage.render(xen_include, RELEASE)
    assert "| `event_channel.h` | 16 of 16 |" in text
    assert "`struct dom0_vga_console_info`" in text  # known to be missing: the list is not empty by mistake
    assert abi_coverage.OUTPUT.read_text(encoding="utf-8") == text, "run scripts/abi_coverage.py"
