"""Node permissions: the list of (domain, access) entries, its text form and its meaning.

The first entry names the owner, and its access is the default for domains that no other entry names. Text form
and rules: docs/misc/xenstore.txt, GET_PERMS and SET_PERMS. Pure. Called by tree operations and watch delivery.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import StoreError

NONE, READ, WRITE, OWNER = 0, 1, 2, 4
ALL = READ | WRITE | OWNER

DOMID_ANY = 0x7FF5  #: an entry for every domain (XENSTORE_SERVER_FEATURE_DOMID_ANY)
DOMID_MAX = 0xFFFF

#: ((owner, default access), (domid, access), …); never empty.
Perms = tuple[tuple[int, int], ...]

_LETTER_ACCESS = {"n": NONE, "r": READ, "w": WRITE, "b": READ | WRITE}
_ACCESS_LETTER = {access: letter for letter, access in _LETTER_ACCESS.items()}

PRIVATE: Perms = ((0, NONE),)  #: owned by dom0, nobody else allowed: the permissions of "/" and of the specials


def access(perms: Perms, domid: int, target: int | None = None) -> int:
    """What an unprivileged `domid`, which may act for `target`, may do: READ | WRITE | OWNER bits."""
    owner = perms[0][0]
    if owner == domid or owner == target:
        return ALL
    for who, allowed in perms[1:]:
        if who == domid or who == DOMID_ANY or who == target:
            return allowed
    return perms[0][1]


def parse_domid(text: str) -> int:
    """A decimal domain id 0..65535. EINVAL otherwise."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > DOMID_MAX:
        raise StoreError("EINVAL", f"{text[:20]!r} is not a domain id (decimal, 0..{DOMID_MAX})")
    return int(text)


def parse(entries: Sequence[str]) -> Perms:
    """Permissions from their text entries, such as ["n0", "r5"]. EINVAL: no entry, or a malformed one."""
    if not entries:
        raise StoreError("EINVAL", "empty permission list; the first entry names the owner")
    parsed = []
    for entry in entries:
        allowed = _LETTER_ACCESS.get(entry[:1])
        if allowed is None:
            raise StoreError("EINVAL", f"permission {entry[:20]!r} is not one of n r w b followed by a domain id")
        parsed.append((parse_domid(entry[1:]), allowed))
    return tuple(parsed)


def format_entries(perms: Perms) -> list[str]:
    """The text entries of `perms`."""
    return [f"{_ACCESS_LETTER[allowed]}{domid}" for domid, allowed in perms]


def inherit(perms: Perms, owner: int | None) -> Perms:
    """Permissions of a new node under a node with `perms`; `owner` replaces the owner unless None."""
    return perms if owner is None or perms[0][0] == owner else ((owner, perms[0][1]), *perms[1:])


def without(perms: Perms, domid: int) -> Perms:
    """`perms` without the entries, other than the owner's, that name `domid`."""
    return (perms[0], *(entry for entry in perms[1:] if entry[0] != domid))
