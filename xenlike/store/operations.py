"""The operations of the wire protocol: one handler each, and the table that the server dispatches by.

A handler takes the connection, the view its tx_id chose and the payload, parses the arguments, calls the typed method
that does the work, and returns the reply's payload; a refusal is a `StoreError`. To add an operation: its number in
`wire.Type`, a handler, a row in `OPERATIONS`, a test. Rules: docs/misc/xenstore.txt. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from . import control, perms
from .errors import StoreError
from .perms import parse_domid
from .quota import check_name, parse_value
from .transaction import Transaction
from .view import View
from .wire import ACK, PAYLOAD_MAX, Type, one_string, strings, text

if TYPE_CHECKING:
    from .connection import Connection


def _control(conn: Connection, view: View, payload: bytes) -> bytes:
    return control.run(conn.store, [text(word) for word in strings(payload)])


def _directory(conn: Connection, view: View, payload: bytes) -> bytes:
    names = conn.resolve(one_string(payload))
    return _name_list(view.require(conn, names).children)


def _directory_part(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) != 2:
        raise StoreError("EINVAL", "DIRECTORY_PART takes a path and an offset")
    if not arguments[1].isdigit():
        raise StoreError("EINVAL", f"offset {arguments[1][:20]!r} is not a number")
    node = view.require(conn, conn.resolve(arguments[0]))
    listing = _name_list(node.children)
    head = b"%d\0" % node.generation
    rest = listing[int(arguments[1]) :]
    room = PAYLOAD_MAX - len(head) - 1
    if len(rest) <= room:
        return head + rest + b"\0"  # the empty name says that the list is complete
    return head + rest[: rest.rfind(b"\0", 0, room) + 1]


def _read(conn: Connection, view: View, payload: bytes) -> bytes:
    return view.require(conn, conn.resolve(one_string(payload))).value


def _get_perms(conn: Connection, view: View, payload: bytes) -> bytes:
    node = view.require(conn, conn.resolve(one_string(payload), special=True))
    return "".join(entry + "\0" for entry in perms.format_entries(node.perms)).encode()


def _watch(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) not in (2, 3):
        raise StoreError("EINVAL", "WATCH takes a path, a token and perhaps a depth")
    depth = None
    if len(arguments) == 3:
        if not arguments[2].isdigit():
            raise StoreError("EINVAL", f"depth {arguments[2][:20]!r} is not a number")
        depth = int(arguments[2])
    conn.add_watch(arguments[0], arguments[1], depth)
    return ACK


def _unwatch(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) != 2:
        raise StoreError("EINVAL", "UNWATCH takes a path and a token")
    conn.remove_watch(arguments[0], arguments[1])
    return ACK


def _transaction_start(conn: Connection, view: View, payload: bytes) -> bytes:
    if isinstance(view, Transaction):
        raise StoreError("EBUSY", "transactions do not nest")
    return b"%d\0" % conn.start_transaction().ident


def _transaction_end(conn: Connection, view: View, payload: bytes) -> bytes:
    answer = one_string(payload)
    if answer not in (b"T", b"F"):
        raise StoreError("EINVAL", f"TRANSACTION_END takes T or F, not {answer[:10]!r}")
    if not isinstance(view, Transaction):
        raise StoreError("ENOENT", "no transaction 0")
    conn.end_transaction(view, answer == b"T")
    return ACK


def _introduce(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = [text(argument) for argument in strings(payload)]
    if len(arguments) < 3:
        raise StoreError("EINVAL", "INTRODUCE takes a domain, a frame and a port")
    conn.store.domains.introduce(parse_domid(arguments[0]), _number(arguments[1]), _number(arguments[2]))
    return ACK


def _release(conn: Connection, view: View, payload: bytes) -> bytes:
    conn.store.domains.release(_one_domid(payload))
    return ACK


def _get_domain_path(conn: Connection, view: View, payload: bytes) -> bytes:
    return b"/local/domain/%d\0" % _one_domid(payload)


def _write(conn: Connection, view: View, payload: bytes) -> bytes:
    end = payload.find(b"\0")
    if end < 0:
        raise StoreError("EINVAL", "WRITE takes a NUL-terminated path and a value")
    view.write(conn, conn.resolve(payload[:end]), payload[end + 1 :])
    return ACK


def _mkdir(conn: Connection, view: View, payload: bytes) -> bytes:
    view.mkdir(conn, conn.resolve(one_string(payload)))
    return ACK


def _rm(conn: Connection, view: View, payload: bytes) -> bytes:
    view.remove(conn, conn.resolve(one_string(payload)))
    return ACK


def _set_perms(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = strings(payload)
    if len(arguments) < 2:
        raise StoreError("EINVAL", "SET_PERMS takes a path and at least one permission")
    names = conn.resolve(arguments[0], special=True)
    view.set_perms(conn, names, perms.parse([text(entry) for entry in arguments[1:]]))
    return ACK


def _is_domain_introduced(conn: Connection, view: View, payload: bytes) -> bytes:
    return b"T\0" if conn.store.domains.is_introduced(_one_domid(payload)) else b"F\0"


def _resume(conn: Connection, view: View, payload: bytes) -> bytes:
    conn.store.domains.resume(_one_domid(payload))
    return ACK


def _set_target(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = [text(argument) for argument in strings(payload)]
    if len(arguments) < 2:
        raise StoreError("EINVAL", "SET_TARGET takes two domains")
    conn.store.domains.set_target(parse_domid(arguments[0]), parse_domid(arguments[1]))
    return ACK


def _reset_watches(conn: Connection, view: View, payload: bytes) -> bytes:
    conn.reset()
    return ACK


def _get_feature(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = [text(argument) for argument in strings(payload)]
    if not arguments or arguments == [""]:
        return b"%d\0" % conn.domain.features
    conn.demand_privilege()
    if len(arguments) > 1:
        raise StoreError("EINVAL", "GET_FEATURE takes at most a domain")
    return b"%d\0" % conn.store.domains.record(parse_domid(arguments[0])).features


def _set_feature(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = [text(argument) for argument in strings(payload)]
    if len(arguments) != 2:
        raise StoreError("EINVAL", "SET_FEATURE takes a domain and a number")
    conn.store.domains.set_features(parse_domid(arguments[0]), parse_value(arguments[1]))
    return ACK


def _get_quota(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = [text(argument) for argument in strings(payload)]
    if not arguments or arguments == [""]:
        return " ".join(conn.store.limits).encode() + b"\0"
    if len(arguments) > 2:
        raise StoreError("EINVAL", "GET_QUOTA takes at most a domain and a quota")
    domains = conn.store.domains
    limits = domains.record(parse_domid(arguments[0])).limits if len(arguments) == 2 else conn.store.limits
    return b"%d\0" % limits[check_name(arguments[-1])]


def _set_quota(conn: Connection, view: View, payload: bytes) -> bytes:
    arguments = [text(argument) for argument in strings(payload)]
    if len(arguments) not in (2, 3):
        raise StoreError("EINVAL", "SET_QUOTA takes perhaps a domain, a quota and a value")
    domid = parse_domid(arguments[0]) if len(arguments) == 3 else None
    conn.store.domains.set_quota(domid, check_name(arguments[-2]), parse_value(arguments[-1]))
    return ACK


def _name_list(names: dict[bytes, object]) -> bytes:
    return b"\0".join(names) + b"\0" if names else b""


def _one_domid(payload: bytes) -> int:
    return parse_domid(text(one_string(payload)))


def _number(argument: str) -> int:
    digits = argument.removeprefix("-")
    if not (digits.isdigit() and len(digits) <= 20):
        raise StoreError("EINVAL", f"{argument[:30]!r} is not a decimal number")
    return int(argument)


class Operation(NamedTuple):
    """One row: how a request is served, whether only the privileged may ask, whether tx_id is looked at."""

    handler: Callable[[Connection, View, bytes], bytes]
    privileged: bool = False
    transactional: bool = True


#: Every operation a client may ask for; the rest is ENOSYS.
OPERATIONS: dict[int, Operation] = {
    Type.CONTROL: Operation(_control, privileged=True),
    Type.DIRECTORY: Operation(_directory),
    Type.READ: Operation(_read),
    Type.GET_PERMS: Operation(_get_perms),
    Type.WATCH: Operation(_watch, transactional=False),
    Type.UNWATCH: Operation(_unwatch, transactional=False),
    Type.TRANSACTION_START: Operation(_transaction_start),
    Type.TRANSACTION_END: Operation(_transaction_end),
    Type.INTRODUCE: Operation(_introduce, privileged=True),
    Type.RELEASE: Operation(_release, privileged=True),
    Type.GET_DOMAIN_PATH: Operation(_get_domain_path),
    Type.WRITE: Operation(_write),
    Type.MKDIR: Operation(_mkdir),
    Type.RM: Operation(_rm),
    Type.SET_PERMS: Operation(_set_perms),
    Type.IS_DOMAIN_INTRODUCED: Operation(_is_domain_introduced),
    Type.RESUME: Operation(_resume, privileged=True),
    Type.SET_TARGET: Operation(_set_target, privileged=True),
    Type.RESET_WATCHES: Operation(_reset_watches),
    Type.DIRECTORY_PART: Operation(_directory_part),
    Type.GET_FEATURE: Operation(_get_feature),
    Type.SET_FEATURE: Operation(_set_feature, privileged=True),
    Type.GET_QUOTA: Operation(_get_quota, privileged=True),
    Type.SET_QUOTA: Operation(_set_quota, privileged=True),
}
