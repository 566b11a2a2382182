"""A wire connection: request bytes in, reply and event bytes out, no I/O of its own.

Owns the rules of a connection: replies in order, a bounded appetite for unprivileged clients, one queued copy of an
event. What requests mean is in `operations`. A transport (`ring`, `socket`) feeds what it received while
`accepts_input`, and sends what `take_output` gives. Whatever is fed, `feed` raises nothing; a client that breaks the
framing is cut off (`error`, `closed`) and others do not notice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import wire
from .errors import StoreError
from .operations import OPERATIONS
from .session import Session
from .watches import Watch
from .wire import PAYLOAD_MAX, Type

if TYPE_CHECKING:
    from .server import Store


class Request:
    """An unprivileged request that is outstanding while its reply or an event it caused is not taken."""

    __slots__ = ("connection", "holds")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.holds = 0

    def hold(self) -> None:
        """One more message waits on behalf of this request."""
        if not self.holds:
            self.connection.domain.usage.outstanding += 1
        self.holds += 1

    def release(self) -> None:
        """One of those messages was taken, or given up."""
        self.holds -= 1
        if not self.holds:
            self.connection.domain.usage.outstanding -= 1
            self.connection.unstall()


class Connection(Session):
    """One client on a byte stream; made by `Store.connect`."""

    def __init__(
        self,
        store: Store,
        domid: int,
        privileged: bool,
        *,
        send: Callable[[bytes], None] | None,
        wake: Callable[[], None] | None,
    ) -> None:
        super().__init__(store, domid, privileged)
        self.error = wire.ERROR_NONE  #: why the connection was cut, a value of the ring page's error field
        self.charged = 0  #: bytes of queued output that the domain's memory quota holds
        self.on_wake = wake
        self._send = send
        self._parser = wire.Parser()
        self._queue: deque[tuple[bytes, bytes | None, Request | None]] = deque()  # message, event payload, cause
        self._queued_events: set[bytes] = set()
        self._sent = 0  # bytes of the first queued message that are taken already
        self._taken = 0  # messages taken ever
        self._old = 0  # messages queued ever, at the last tick
        self._feeding = False
        self._owed_wake = False  # input waits for the stall to end
        self._output_bytes = 0

    # The stream.

    @property
    def stalled(self) -> bool:
        """Whether the domain must take its output before more of its requests are served."""
        if self.privileged:
            return False
        usage = self.domain.usage
        limits = self.limits
        if 0 < limits["outstanding"] <= usage.outstanding:
            return True
        return bool(self._queue) and limits.exceeded("memory", usage.memory)

    def accepts_input(self) -> bool:
        """Whether the transport may read and feed more. After a False, the wake callback comes when that changes."""
        self._owed_wake = self.stalled
        return not (self.closed or self._owed_wake)

    def unstall(self) -> None:
        """Something that may have stalled the connection went away: wake it if it waits and may go on."""
        if self._owed_wake and not self.stalled:
            self._owed_wake = False
            self.store.wake_later(self)

    @property
    def has_output(self) -> bool:
        """Whether `take_output` has something to give."""
        return bool(self._queue)

    @property
    def output_bytes(self) -> int:
        """Bytes of output waiting."""
        return self._output_bytes

    def feed(self, data: bytes) -> None:
        """Take received bytes and serve every request they complete, as far as the quota of outstanding ones goes."""
        if not self.closed and data:
            self._parser.feed(data)
            self.process()

    def process(self) -> bool:
        """Serve requests that were held back while stalled; whether there were any."""
        if self._feeding:
            return False
        self._feeding = True
        served = False
        try:
            while not self.closed:
                try:
                    message = self._parser.next() if self.privileged or self.accepts_input() else None
                except wire.ProtocolViolation:
                    self.cut(wire.ERROR_PROTO)
                    break
                if message is None:
                    break
                self._serve(*message)
                served = True
        finally:
            self._feeding = False
        return served

    def take_output(self, limit: int) -> bytes:
        """Up to `limit` bytes of output, which are then the transport's to send."""
        queue = self._queue
        if len(queue) == 1 and not self._sent and len(queue[0][0]) <= limit:  # the usual case
            message, event, request = queue.popleft()
            self._taken += 1
            self._output_bytes = 0
            self._settle_message(message, event, request)
            self._output_taken()
            return message
        taken = []
        room = limit
        while queue and room > 0:
            message, event, request = queue[0]
            piece = message[self._sent : self._sent + room] if self._sent or len(message) > room else message
            taken.append(piece)
            room -= len(piece)
            self._sent += len(piece)
            if self._sent < len(message):
                break
            queue.popleft()
            self._sent = 0
            self._taken += 1
            self._settle_message(message, event, request)
        data = b"".join(taken)
        self._output_bytes -= len(data)
        self._output_taken()
        return data

    def wake(self) -> None:
        """Tell the transport that there is output, or appetite for input, again. Called by `Store.settle`."""
        if self.closed and not self._queue:
            return
        if self.on_wake is not None:
            self.on_wake()
        else:
            self.process()

    def cut(self, error: int) -> None:
        """End the connection because the client broke the protocol; output, watches, transactions are dropped."""
        self.error = error
        self.store.counters["violations"] += 1
        self.close()

    def restart(self) -> None:
        super().restart()
        self._drop_streams()

    def close(self) -> None:
        super().close()
        self._drop_streams()

    def forgive(self) -> None:
        """Let events that were queued before the last call no longer count against those who caused them."""
        for position in range(max(0, self._old - self._taken)):
            message, event, request = self._queue[position]
            if event is not None and request is not None:
                self._queue[position] = (message, event, None)
                request.release()
        self._old = self._taken + len(self._queue)

    def deliver(self, watch: Watch, path: bytes, request: Request | None) -> None:
        payload = path + b"\0" + watch.token + b"\0"
        counters = self.store.counters
        if payload in self._queued_events and path[:1] != b"@":
            counters["events_merged"] += 1
            return
        if len(payload) > PAYLOAD_MAX or (
            not self.privileged and self.limits.exceeded("memory", self.domain.usage.memory + len(payload))
        ):
            counters["events_dropped"] += 1
            return
        counters["events"] += 1
        self._put(wire.pack(Type.WATCH_EVENT, 0, 0, payload), payload, request)

    # Internal.

    def _output_taken(self) -> None:
        if self._owed_wake:
            self.unstall()
        if not self._feeding:
            self.store.settle()

    def _put(self, message: bytes, event: bytes | None, request: Request | None) -> None:
        if self._send is not None:
            self._send(message)
            return
        self._output_bytes += len(message)
        if request is not None:
            request.hold()
        if event is not None:
            self._queued_events.add(event)
        if not self.privileged:
            self.charged += len(message)
            self.domain.usage.memory += len(message)
        self._queue.append((message, event, request))
        if not self._feeding:
            self.store.wake_later(self)

    def _settle_message(self, message: bytes, event: bytes | None, request: Request | None) -> None:
        """The books of a message that left the queue."""
        if event is not None:
            self._queued_events.discard(event)
        if not self.privileged:
            self.charged -= len(message)
            self.domain.usage.memory -= len(message)
        if request is not None:
            request.release()

    def _drop_streams(self) -> None:
        self._parser.clear()
        queue, self._queue = self._queue, deque()
        self._taken += len(queue)
        self._sent = 0
        self._output_bytes = 0
        for message in queue:
            self._settle_message(*message)

    def _serve(self, kind: int, req_id: int, tx_id: int, payload: bytes) -> None:
        store = self.store
        counters = store.counters
        counters["requests"] += 1
        request = None if self.privileged else Request(self)
        store.request = request
        try:
            operation = OPERATIONS.get(kind)
            if operation is None:
                raise StoreError("ENOSYS", f"message type {kind}")
            handler, privileged, transactional = operation
            if privileged:
                self.demand_privilege()
            view = self.find_transaction(tx_id) if tx_id and transactional else store.live
            reply = handler(self, view, payload)
            if len(reply) > PAYLOAD_MAX:
                raise StoreError("E2BIG", f"the reply has {len(reply)} bytes")
        except StoreError as error:
            counters["errors"] += 1
            kind = Type.ERROR
            reply = wire.error_payload(error)
        finally:
            store.request = None
        if not self.closed:  # RELEASE of one's own domain
            self._put(wire.pack(kind, req_id, tx_id, reply), None, request)
        store.settle()
