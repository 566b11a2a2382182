"""The guests' consoles: the back end of the PV console ring, a PC's serial port, and each domain's log."""

from xenlike.devices.console.backend import ConsoleRing
from xenlike.devices.console.log import ConsoleLog
from xenlike.devices.console.serial import SerialConsole

__all__ = ["ConsoleLog", "ConsoleRing", "SerialConsole"]
