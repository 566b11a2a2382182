"""CONTROL: the commands that an operator gives a running store (`xenstore-control`).

One function a command, one table. Only privileged sessions get here. Answers are text for people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import StoreError
from .perms import parse_domid
from .quota import QUOTAS, check_name, parse_value
from .wire import PAYLOAD_MAX

if TYPE_CHECKING:
    from .server import Store

_SOFT = "soft-"


def _check(store: Store, arguments: list[str]) -> str:
    found = store.check()
    return "\n".join(found) if found else "OK"


def _help(store: Store, arguments: list[str]) -> str:
    return "".join(f"{name:<16}{usage}\n" for name, (_, usage) in COMMANDS.items())


def _memreport(store: Store, arguments: list[str]) -> str:
    lines = [f"{'domain':>6} {'memory':>9} {'nodes':>7} {'watches':>7} {'transactions':>12} {'outstanding':>11}"]
    for domain in store.domains.all():
        usage = domain.usage
        soft = domain.limits["soft-memory"]
        mark = "  over soft-memory" if domain.domid and soft and usage.memory > soft else ""
        lines.append(
            f"{domain.domid:>6} {usage.memory:>9} {usage.nodes:>7} {usage.watches:>7} {usage.transactions:>12}"
            f" {usage.outstanding:>11}{mark}"
        )
    return "\n".join(lines) + "\n"


def _print(store: Store, arguments: list[str]) -> str:
    if len(arguments) != 1:
        raise StoreError("EINVAL", "print takes one string")
    store.hooks.print(arguments[0])
    return "OK"


def _quota(store: Store, arguments: list[str]) -> str:
    if len(arguments) == 1:
        return _quota_usage(store, parse_domid(arguments[0]))
    return _quota_table(store, arguments, soft=False)


def _quota_soft(store: Store, arguments: list[str]) -> str:
    return _quota_table(store, arguments, soft=True)


def _quota_usage(store: Store, domid: int) -> str:
    domain = store.domains.get(domid)
    if domain is None:
        raise StoreError("ENOENT", f"domain {domid} is not known")
    used = {name: getattr(domain.usage, name) for name in QUOTAS if hasattr(domain.usage, name)}
    return "".join(f"{name:<20}: {amount:>8} of {domain.limits[name]}\n" for name, amount in used.items())


def _quota_table(store: Store, arguments: list[str], *, soft: bool) -> str:
    prefix = _SOFT if soft else ""
    if not arguments:
        rows = [name for name in QUOTAS if name.startswith(_SOFT) == soft]
        return "".join(f"{name.removeprefix(_SOFT):<20}: {store.limits[name]:>8} {QUOTAS[name][1]}\n" for name in rows)
    if len(arguments) != 3 or arguments[0] != "set":
        raise StoreError("EINVAL", "takes nothing, a domain, or: set NAME VALUE")
    store.domains.set_quota(None, check_name(prefix + arguments[1]), parse_value(arguments[2]))
    return "OK"


#: Command → (function, its arguments as `help` shows them).
COMMANDS: dict[str, tuple[Callable[[Store, list[str]], str], str]] = {
    "check": (_check, ""),
    "help": (_help, ""),
    "memreport": (_memreport, ""),
    "print": (_print, "<string>"),
    "quota": (_quota, "[set <name> <val>|<domid>]"),
    "quota-soft": (_quota_soft, "[set <name> <val>]"),
}


def run(store: Store, words: list[str]) -> bytes:
    """Run a command and its arguments: the reply payload. EINVAL: no such command, or not its arguments."""
    if not words or words[0] not in COMMANDS:
        raise StoreError("EINVAL", f"no command {(words or [''])[0][:30]!r}; there are {' '.join(COMMANDS)}")
    function, usage = COMMANDS[words[0]]
    if len(words) > 1 and not usage:
        raise StoreError("EINVAL", f"{words[0]} takes no arguments")
    return function(store, words[1:]).encode()[: PAYLOAD_MAX - 1] + b"\0"
