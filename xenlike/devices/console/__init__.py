"""The guests' consoles: the back end of the PV console ring, and each domain's log."""

from xenlike.devices.console.backend import ConsoleRing
from xenlike.devices.console.log import ConsoleLog

__all__ = ["ConsoleLog", "ConsoleRing"]
