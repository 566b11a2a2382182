"""The server's side of a guest's xenstore ring: moves bytes between a ring page and a `Connection`.

The toolstack makes one `RingTransport` a domain, in its `Hooks.introduce`, and calls `service` at every event on the
domain's xenstore port, and again while there is `more`. The page belongs to a hostile guest (see `ringpage`); whatever is in it, the worst is
that this domain's connection is cut, with the reason in the page's error word, until it asks for a reconnect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import wire
from .connection import Connection
from .ringpage import (
    CONNECTED,
    CONNECTION,
    ERROR,
    RECONNECT,
    REQ_CONS,
    REQ_PROD,
    REQUESTS,
    RESPONSES,
    RSP_CONS,
    RSP_PROD,
    SERVER_FEATURES,
    BadIndex,
    Inbox,
    Outbox,
    RingPage,
)

if TYPE_CHECKING:
    from .server import Store


class RingTransport:
    """Serves domain `domid` on the ring in `page`.

    page:   a writable buffer of 4096 bytes, usually a view of guest memory.
    notify: sends the event that tells the guest to look at the ring; called whenever an index moved.
    The features written to the page are those of the domain's record (SET_FEATURE before INTRODUCE).
    """

    def __init__(
        self,
        store: Store,
        domid: int,
        page: object,
        notify: Callable[[], None],
        *,
        privileged: bool | None = None,
    ) -> None:
        self.store = store
        self.domid = domid
        self._privileged = privileged
        self._notify = notify
        self._page = RingPage(page)
        self._inbox = Inbox(self._page, REQUESTS, REQ_CONS, REQ_PROD)
        self._outbox = Outbox(self._page, RESPONSES, RSP_CONS, RSP_PROD)
        self._busy = False
        self._unread = False  # the guest's bytes were left in the ring because the connection was stalled
        self.detached = False
        self.connection = self._connect()
        self._features = self.connection.domain.features
        self._page.words[SERVER_FEATURES] = self._features

    def service(self) -> bool:
        """Take what the guest published by now, serve it, and publish what there is room for.

        Returns whether any byte moved or the connection was reset, in which case `notify` was called. What the
        guest publishes during the call may have no event of its own: see `more`. Never raises on account of the
        page's contents.
        """
        return self._run(self._take)

    @property
    def more(self) -> bool:
        """The guest has published something since the last `service` looked, which should be called again, after others.

        Linux sends an event only if, at that moment, everything before was consumed (drivers/xen/xenbus/xenbus_comms.c,
        xb_write): the body of a request, published while its header is being taken, comes without one.
        """
        return not self.detached and not self.connection.closed and not self._unread and self._inbox.waiting()

    def reset(self) -> None:
        """Empty the ring and begin anew, as at a second INTRODUCE: indices 0, no watches, no transactions."""
        if self.connection.closed:
            self.connection = self._connect()
        else:
            self.connection.restart()
        words = self._page.words
        self._inbox.reset()
        self._outbox.reset()
        words[REQ_PROD] = words[RSP_CONS] = 0
        words[ERROR] = wire.ERROR_NONE
        words[CONNECTION] = CONNECTED
        self._unread = False

    def detach(self) -> None:
        """End the connection and give up the page; harmless when repeated. Other connections may go on by it."""
        if not self.detached:
            self.detached = True
            self.connection.close()
            self._page.release()
            self.store.settle()

    def _connect(self) -> Connection:
        return self.store.connect(self.domid, privileged=self._privileged, wake=self._woken)

    def _woken(self) -> None:
        # Only what the guest's events will not bring up again: queued output, held-back input. New input is not
        # looked for, lest two busy guests keep each other's transports, and the caller, going for ever.
        self._run(self._take if self._unread else None)

    def _run(self, take: Callable[[], bool] | None) -> bool:
        if self._busy or self.detached:
            return False
        self._busy = True
        try:
            moved = self._reconnect()
            if not moved and not self.connection.closed:
                try:
                    moved = take() if take is not None else False
                    while not self.connection.closed:
                        moved |= self._give()
                        if not self.connection.process():
                            break
                        moved = True
                except BadIndex:
                    self.connection.cut(wire.ERROR_RINGIDX)
                if self.connection.error and not self.detached:
                    if self._features & wire.FEATURE_ERROR:
                        self._page.words[ERROR] = self.connection.error
                    moved = True
            self.store.settle()
        finally:
            self._busy = False
        if moved and not self.detached:
            self._notify()
        return moved

    def _take(self) -> bool:
        if not self.connection.accepts_input():
            self._unread = True
            return False
        self._unread = False
        data = self._inbox.take()
        self.connection.feed(data)
        return bool(data)

    def _give(self) -> bool:
        connection = self.connection
        moved = False
        while connection.has_output and not self.detached:
            room = self._outbox.room()
            if not room:
                break
            data = connection.take_output(room)  # may wake others, which may detach us
            if not self.detached:
                self._outbox.put(data)
                moved = True
        return moved

    def _reconnect(self) -> bool:
        if not self._features & wire.FEATURE_RECONNECTION or self._page.words[CONNECTION] != RECONNECT:
            return False
        self.reset()
        return True
