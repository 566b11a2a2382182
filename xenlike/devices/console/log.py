"""A domain's console log: what it printed, for any number of readers.

Owns: the text of one domain since its creation (bounded), its log file, its listeners. Called by: the console back end and console_io
(append), users (read). Appends happen on the lane; reads may come from any thread.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

__all__ = ["ConsoleLog", "ConsoleReader"]

LIMIT = 1 << 20         # bytes kept in memory, as xenconsoled's limit


class ConsoleLog:
    """The bytes that a domain printed. Positions count from its creation and never repeat."""

    def __init__(self, path: pathlib.Path | None = None) -> None:
        self._data = bytearray()
        self._start = 0                 # position of _data[0]
        self._listeners: list[Callable[[bytes], None]] = []
        self._file: BinaryIO | None = open(path, "ab", buffering=0) if path else None

    def append(self, data: bytes) -> None:
        """Adds output and tells the listeners."""
        self._data += data
        if len(self._data) > LIMIT:
            cut = len(self._data) - LIMIT
            del self._data[:cut]
            self._start += cut
        if self._file:
            self._file.write(data)
        for listener in list(self._listeners):
            listener(data)

    @property
    def end(self) -> int:
        """The position behind the last byte."""
        return self._start + len(self._data)

    def since(self, position: int) -> bytes:
        """Everything from ``position`` on that is still kept."""
        return bytes(self._data[max(0, position - self._start):])

    def listen(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """Calls ``listener(data)`` on the lane for each piece of output; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def close(self) -> None:
        """No more output will come; the text stays readable."""
        if self._file:
            self._file.close()
            self._file = None


class ConsoleReader:
    """A place in a log: each reader sees every byte once, whatever other readers do."""

    def __init__(self, log: ConsoleLog) -> None:
        self._log = log
        self._position = 0

    def read(self) -> bytes:
        """What came since the last read."""
        data = self._log.since(self._position)
        self._position = self._log.end
        return data

    def lines(self) -> Iterator[str]:
        """Whole lines that came since; an unfinished one waits."""
        while (end := self._log.since(self._position).find(b"\n")) >= 0:
            start = max(self._position, self._log.end - len(self._log.since(self._position)))
            line = self._log.since(start)[:end]
            self._position = start + end + 1
            yield line.decode(errors="replace").rstrip("\r")
