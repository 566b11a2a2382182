"""What tests of several folders share: the fixture ``xen`` also where xenlike is not installed (and so pytest has not found its
plugin), and images that others made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Where the host cannot translate, the interpreter is asked for: else each program that a test runs would say so first, in its output."""
    from xenlike.engine import ffi, lib

    if lib.xl_bt_unavailable() != ffi.NULL:
        os.environ.setdefault("XENLIKE_ENGINE", "interp")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.has_plugin("xenlike"):
        from xenlike.testing import plugin

        pluginmanager.register(plugin, "xenlike")


@pytest.fixture(scope="session")
def grub() -> Path:
    """Debian's grub-x86_64-xen.bin (2.06 in Debian 12); beside it lie those for 32 bits."""
    sys.path.insert(0, str(Path(__file__).parent / "tools"))
    import peers

    try:
        return peers.path("grub-xen-host") / "usr/lib/grub-xen/grub-x86_64-xen.bin"
    except peers.PeerUnavailable as error:
        pytest.skip(str(error))
