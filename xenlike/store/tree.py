"""The persistent tree: immutable nodes, and functions that return a new top instead of changing one.

An edit copies the nodes between the top and the edited node and shares the rest, so a root held by a
transaction, or by an event that is still to be delivered, stays as it was for the price of a reference. A
node's `generation` changes when its own value, permissions or set of child names change, not when a descendant
does: it is what transaction conflicts are detected by. Pure: no permissions, quotas or events here. Paths may
be some 1500 names deep, therefore nothing recurses.
"""

from __future__ import annotations

from collections.abc import Iterator

from .paths import Names
from .perms import Perms

_LEAF: dict[bytes, "Node"] = {}

#: Host bytes of a node beside its contents, and of each name in a path that some table is keyed by: quotas charge
#: what a node costs, so that thousands of names in one path are not free.
NODE_OVERHEAD = 256
NAME_OVERHEAD = 8


class Node:
    """One node. Nothing may assign to it once another node or a root refers to it."""

    __slots__ = ("value", "perms", "children", "generation")

    def __init__(self, value: bytes, perms: Perms, children: dict[bytes, Node], generation: int) -> None:
        self.value = value
        self.perms = perms
        self.children = children  #: in order of creation, which is the order DIRECTORY answers in
        self.generation = generation

    def __repr__(self) -> str:
        return f"Node({self.value!r}, {self.perms!r}, children={list(self.children)}, generation={self.generation})"


#: One changed node: where, what it was (None: new), what it is (None: removed).
Change = tuple[Names, "Node | None", "Node | None"]


def leaf(value: bytes, perms: Perms, generation: int) -> Node:
    """A node without children."""
    return Node(value, perms, _LEAF, generation)


def lookup(top: Node, names: Names) -> Node | None:
    """The node at `names`, or None."""
    node = top
    try:
        for name in names:
            node = node.children[name]
    except KeyError:
        return None
    return node


def graft(top: Node, names: Names, node: Node) -> Node:
    """A top where `names` is `node`, children included. The parent of `names` must exist."""
    spine = [top]
    for name in names[:-1]:
        top = top.children[name]
        spine.append(top)
    for name in reversed(names):
        parent = spine.pop()
        children = parent.children.copy()
        children[name] = node
        node = Node(parent.value, parent.perms, children, parent.generation)
    return node


def create(
    top: Node, names: Names, depth: int, value: bytes, perms: Perms, generation: int
) -> tuple[Node, list[Change]]:
    """Create `names` and its missing ancestors, those being empty; names[:depth] is the nearest that exists.

    depth is at least 1: roots cannot be created. Returns the new top and the changes from the ancestor downwards.
    """
    node = leaf(value, perms, generation)
    changes: list[Change] = [(names, None, node)]
    for end in range(len(names) - 1, depth, -1):
        node = Node(b"", perms, {names[end]: node}, generation)
        changes.append((names[:end], None, node))
    ancestor = lookup(top, names[:depth])
    children = ancestor.children.copy()
    children[names[depth]] = node
    grown = Node(ancestor.value, ancestor.perms, children, generation)
    changes.append((names[:depth], ancestor, grown))
    changes.reverse()
    return graft(top, names[:depth], grown), changes


def remove(top: Node, names: Names, generation: int) -> tuple[Node, list[Change]]:
    """Remove the node at `names`, which exists and is no root, with its subtree.

    Returns the new top and the changes: removed nodes from the top downwards, then the parent.
    """
    changes: list[Change] = [(where, node, None) for where, node in walk(names, lookup(top, names))]
    parent = lookup(top, names[:-1])
    children = parent.children.copy()
    del children[names[-1]]
    shrunk = Node(parent.value, parent.perms, children, generation)
    changes.append((names[:-1], parent, shrunk))
    return graft(top, names[:-1], shrunk), changes


def merge(top: Node, names: Names, node: Node) -> Node:
    """Bring a node that a transaction changed into `top`: value, permissions, generation, set of children are its own.

    The children themselves are those of `top`, where it has them: what the transaction changed in them is merged
    after their parent. Since nobody else changed the node, its children in `top` are those it had at the start.
    """
    current = lookup(top, names)
    if current is None:
        return graft(top, names, node)
    theirs = current.children
    children = {name: theirs.get(name, child) for name, child in node.children.items()}
    return graft(top, names, Node(node.value, node.perms, children, node.generation))


def walk(names: Names, node: Node) -> Iterator[tuple[Names, Node]]:
    """Every node from `node`, which is at `names`, downwards; parents first, children in order of creation."""
    stack = [(names, node)]
    while stack:
        here, node = stack.pop()
        yield here, node
        stack.extend((here + (name,), child) for name, child in reversed(node.children.items()))


def own_size(node: Node) -> int:
    """Bytes that count against the node-size quota: the value and the children's names with their NULs."""
    size = len(node.value)
    if node.children:
        size += sum(map(len, node.children)) + len(node.children)
    return size


def memory(names: Names, node: Node) -> int:
    """Host bytes charged to the node's owner; its last name stands for its share of the parent."""
    return NODE_OVERHEAD + NAME_OVERHEAD * len(names) + len(names[-1]) + len(node.value) + 8 * len(node.perms)
