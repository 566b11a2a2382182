"""Xenstore paths: syntax, limits, and the tuple of names that the tree is keyed by.

A path is handled as a tuple of names under a nameless top: ``/local/domain`` is ``(b"", b"local", b"domain")``,
``/`` is ``(b"",)`` and the special ``@releaseDomain`` is ``(b"@releaseDomain",)``; so the special nodes live in
the same tree as the rest, beside the root, where no ordinary path can reach them. Called by every operation.
Pure; the cache below is a memo of a pure function, kept to short paths so that hostile input cannot grow it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .errors import StoreError

Names = tuple[bytes, ...]

ABSOLUTE_MAX = 3072  #: bytes in an absolute path (XENSTORE_ABS_PATH_MAX)
RELATIVE_MAX = 2048  #: bytes in a relative path (XENSTORE_REL_PATH_MAX)

ROOT: Names = (b"",)
INTRODUCE_DOMAIN: Names = (b"@introduceDomain",)
RELEASE_DOMAIN: Names = (b"@releaseDomain",)

_NAME = rb"[A-Za-z0-9\-_@]+"
_SYNTAX = re.compile(rb"/|(?:/%s)+|%s(?:/%s)*" % (_NAME, _NAME, _NAME))
_MEMO_PATH_MAX = 128


def _split(path: bytes) -> Names:
    if _SYNTAX.fullmatch(path) is None:
        raise StoreError("EINVAL", f"path {path[:80]!r} is not made of /-separated names of A-Z a-z 0-9 - _ @")
    return ROOT if path == b"/" else tuple(path.split(b"/"))


_split_memo = lru_cache(maxsize=4096)(_split)


def split(path: bytes) -> Names:
    """Names of `path`: absolute ones start with b"", relative ones do not. EINVAL: bad syntax or too long."""
    length = len(path)
    if length <= _MEMO_PATH_MAX:
        return _split_memo(path)
    if length > (ABSOLUTE_MAX if path[:1] == b"/" else RELATIVE_MAX):
        raise StoreError("EINVAL", f"path of {length} bytes; the limit is {ABSOLUTE_MAX}, relative {RELATIVE_MAX}")
    return _split(path)


def join(names: Names) -> bytes:
    """The path that `names` came from."""
    return b"/" if names == ROOT else b"/".join(names)


def domain_home(domid: int) -> Names:
    """Names of /local/domain/`domid`, which relative paths of that domain start from."""
    return (b"", b"local", b"domain", b"%d" % domid)


def domain_relative_length(names: Names) -> int:
    """Bytes of the path that count against a domain's path-max quota: a /local/domain/N/ prefix is free."""
    if len(names) > 4 and names[:3] == (b"", b"local", b"domain") and names[3].isdigit():
        names = names[4:]
    return len(join(names))
