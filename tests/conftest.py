"""Gives the tests the fixture ``xen`` also where xenlike is not installed, and so pytest has not found its plugin."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.has_plugin("xenlike"):
        from xenlike.testing import plugin

        pluginmanager.register(plugin, "xenlike")
