"""Watches and the index that finds those which a change concerns.

The index is a trie over path names, so that finding the watches of a change costs the depth of its path, and a
removal visits only the watches below it, however many watches other domains hold. Matching only: permission
and delivery are for `server`. Rules: docs/misc/xenstore.txt, WATCH. Mutable; belongs to one `Store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .paths import Names

if TYPE_CHECKING:
    from .session import Session


#: Host bytes that one name of a watched path may cost in the index.
_BRANCH_OVERHEAD = 256


class Watch:
    """One registered watch.

    session: whose it is.  names: what it watches.  path: as the client spelled it, returned in its first event.
    skip: bytes of an event's path that are cut off, so that a relative watch gets relative paths.
    depth: levels below `names` to consider, None for all.  sequence: order of registration in the store.
    """

    __slots__ = ("session", "names", "path", "token", "depth", "skip", "sequence")

    def __init__(
        self, session: Session, names: Names, path: bytes, token: bytes, depth: int | None, skip: int, sequence: int
    ) -> None:
        self.session = session
        self.names = names
        self.path = path
        self.token = token
        self.depth = depth
        self.skip = skip
        self.sequence = sequence

    @property
    def memory(self) -> int:
        """Host bytes charged to the session's domain."""
        return len(self.path) + len(self.token) + _BRANCH_OVERHEAD * len(self.names)


class _Branch:
    __slots__ = ("watches", "branches")

    def __init__(self) -> None:
        self.watches: dict[Watch, None] = {}
        self.branches: dict[bytes, _Branch] = {}


class WatchIndex:
    """All watches of a store, by path."""

    def __init__(self) -> None:
        self._top = _Branch()

    def add(self, watch: Watch) -> None:
        """Enter `watch`."""
        branch = self._top
        for name in watch.names:
            below = branch.branches.get(name)
            if below is None:
                below = branch.branches[name] = _Branch()
            branch = below
        branch.watches[watch] = None

    def discard(self, watch: Watch) -> None:
        """Take `watch`, which was added, out again, and the branches that only it needed."""
        trail = [self._top]
        for name in watch.names:
            trail.append(trail[-1].branches[name])
        del trail[-1].watches[watch]
        for depth in range(len(watch.names) - 1, -1, -1):
            branch = trail[depth + 1]
            if branch.watches or branch.branches:
                break
            del trail[depth].branches[watch.names[depth]]

    def matches(self, names: Names, removed: bool) -> list[Watch]:
        """Watches that a change at `names` fires, in order of registration.

        Those at `names` or above it, within their depth; when the change is a removal, those below it too.
        """
        found: list[Watch] = []
        branch: _Branch | None = self._top
        below = len(names)
        for name in names:
            branch = branch.branches.get(name)
            if branch is None:
                break
            below -= 1
            if branch.watches:
                found.extend(watch for watch in branch.watches if watch.depth is None or below <= watch.depth)
        if removed and branch is not None:
            pending = list(branch.branches.values())
            while pending:
                branch = pending.pop()
                found.extend(branch.watches)
                pending.extend(branch.branches.values())
        if len(found) > 1:
            found.sort(key=_by_sequence)
        return found

    def special_matches(self, names: Names) -> list[Watch]:
        """Watches that the special event `names` fires.

        The event of the bare name, (b"@releaseDomain",), is for watches without a depth; the event that adds the
        domain, (b"@releaseDomain", b"7"), is for watches of just that, or of the bare name with a depth.
        """
        bare = self._top.branches.get(names[0])
        if bare is None:
            return []
        if len(names) == 1:
            found = [watch for watch in bare.watches if watch.depth is None]
        else:
            found = [watch for watch in bare.watches if watch.depth]
            exact = bare.branches.get(names[1])
            if exact is not None:
                found.extend(exact.watches)
        found.sort(key=_by_sequence)
        return found


def _by_sequence(watch: Watch) -> int:
    return watch.sequence
