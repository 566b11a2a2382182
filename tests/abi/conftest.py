"""Finds the peers module and hands Debian's Xen headers to the tests, or skips them with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools"), str(HERE.parents[1] / "scripts")]

import peers  # noqa: E402

# The release whose interface csrc/include/xen describes.
RELEASE = "4.17"


@pytest.fixture(scope="session")
def xen_include() -> Path:
    """The include folder of libxen-dev. Skips where there is none, or one of another release."""
    try:
        version = peers.version("libxen-dev")
        root = peers.path("libxen-dev")
    except peers.PeerUnavailable as error:
        pytest.skip(str(error))
    if not version.startswith(f"{RELEASE}."):
        pytest.skip(f"libxen-dev here is {version}; the headers describe {RELEASE}")
    return root / "usr" / "include"
