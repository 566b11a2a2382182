"""What the store asks of the world: the toolstack subclasses `Hooks` to attach rings and to hear of domains.

The store is pure and knows no pages and no event channels; INTRODUCE and its kin come out here.
"""

from __future__ import annotations

import logging

_log = logging.getLogger("xenlike.store")


class Hooks:
    """Default hooks: nothing to attach, messages go to logging. A method may raise `StoreError` to refuse.

    Called within the request that causes them, after it was checked and before it takes effect, on the thread
    that serves the store; they may use the store (connect, direct operations).
    """

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Attach the ring page `gfn` and the domain's event channel `port`; again, to rebind, if attached already."""

    def release(self, domid: int) -> None:
        """Detach the domain's ring; its connections are closed when this is called."""

    def resume(self, domid: int) -> None:
        """The domain runs again after a shutdown."""

    def print(self, text: str) -> None:
        """A message for the operator's log: CONTROL print."""
        _log.info("%s", text)

    def callback_failed(self, path: str, token: str, error: Exception) -> None:
        """A `Direct` watch callback raised `error`; other callbacks and the store go on."""
        _log.error("watch callback for %s (token %s) failed", path, token, exc_info=error)
