"""Xenstore's errors: the one table of names and numbers, and the exception that carries them.

Owns: the names that may appear in an ERROR reply (public/io/xs_wire.h) and their Xen errno. Everything in
``xenlike.store`` that refuses a request raises `StoreError`; `wire.error_payload` is the only place that turns
one into bytes, `client_ring` the only place that turns bytes back into one. Pure: no locks, no I/O.
"""

from __future__ import annotations

#: Error name → Xen errno. A reply can carry no other name.
ERRNO: dict[str, int] = {
    "EPERM": 1,
    "ENOENT": 2,
    "EIO": 5,
    "E2BIG": 7,
    "EAGAIN": 11,
    "ENOMEM": 12,
    "EACCES": 13,
    "EBUSY": 16,
    "EEXIST": 17,
    "EISDIR": 21,
    "EINVAL": 22,
    "ENOSPC": 28,
    "EROFS": 30,
    "ENOSYS": 38,
    "ENOTEMPTY": 39,
    "EISCONN": 106,
}

#: What a reader of a traceback should do about each error.
_ADVICE: dict[str, str] = {
    "EPERM": "only a privileged domain may change a node's owner",
    "ENOENT": "no such node, watch, transaction or domain; check the spelling, or create it first",
    "E2BIG": "the reply would not fit in 4096 bytes; list the directory in parts",
    "EAGAIN": "another client changed what the transaction used; run the transaction again",
    "ENOMEM": "the transaction met an error earlier and cannot be committed; abort and run it again",
    "EACCES": "the node's permissions, or the domain's privilege, do not allow it",
    "EBUSY": "already in use; end the running transaction, or set features before introducing the domain",
    "EEXIST": "the same path and token are watched already",
    "EINVAL": "the argument is malformed; see the xenstore protocol for its syntax",
    "ENOSPC": "a quota of the domain is used up; free some of it, or raise the quota",
    "ENOSYS": "no such operation in this xenstore",
}


class StoreError(Exception):
    """A refused xenstore request.

    name:   the error's name as on the wire, one of `ERRNO`.
    errno:  its Xen errno, positive.
    detail: which value was refused and why (may be empty).
    domid:  the domain that asked, or None when not known.
    op:     the operation's wire name ("READ"), or "".
    """

    def __init__(self, name: str, detail: str = "", *, domid: int | None = None, op: str = "") -> None:
        super().__init__(name, detail)
        self.name = name
        self.errno = ERRNO[name]
        self.detail = detail
        self.domid = domid
        self.op = op

    def __str__(self) -> str:
        who = "xenstore" if self.domid is None else f"xenstore: domain {self.domid}"
        parts = [who, self.op or "request", self.name]
        text = ": ".join(parts)
        if self.detail:
            text += f": {self.detail}"
        advice = _ADVICE.get(self.name)
        return f"{text} ({advice})" if advice else text
