"""What the parts of the demo share: checks that are printed and counted, and waiting for what a guest says.

Owns ``Stage``. Called by ``python_guests`` and ``native``; ``main`` adds up what failed and names what was left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from xenlike.domain import Domain, WaitTimeout

__all__ = ["PATIENCE", "Stage"]

PATIENCE = 120.0        #: seconds for any one step


class Stage:
    """The state of one run: ``failed`` counts the checks that did not hold, ``left_out`` says what could not be shown, and why."""

    def __init__(self) -> None:
        self.failed = 0
        self.left_out: list[str] = []
        self.domains: tuple[Domain, ...] = ()

    def title(self, text: str) -> None:
        """Begins a part."""
        print(f"\n{text}\n{'-' * len(text)}")

    def leave_out(self, what: str, why: str) -> None:
        """Something cannot be shown here."""
        self.left_out.append(what)
        print(f"  left out: {why}")

    def check(self, label: str, host: object, guest: object, *, sides: bool = True) -> None:
        """Prints a check, with both sides of it if ``sides``, and counts it if it fails."""
        same = host == guest
        self.failed += not same
        verdict = "ok" if same else f"FAILED: {host} is not {guest}"
        if not sides:
            print(f"  {label:<36}{verdict}")
            return
        print(f"  {label:<28}host   {host}")
        print(f"  {'':<28}guest  {guest}  {verdict}")

    def said(self, domain: Domain, pattern: str) -> re.Match[str]:
        """Waits for a line on a console, but not for one that cannot come any more. Raises WaitTimeout."""
        log, looked_until = domain.console.log, -1

        def ready() -> bool:            # asked after each step of the host, which is being timed
            nonlocal looked_until
            if log.end == looked_until:
                return self.crashed()
            looked_until = log.end
            return re.search(pattern, domain.console.text) is not None or self.crashed()

        domain.host.wait_until(ready, timeout=PATIENCE)
        return domain.console.expect(pattern, timeout=0)

    def crashed(self) -> bool:
        """A domain has ended otherwise than by powering off."""
        return any(domain.result and domain.result.reason != "poweroff" for domain in self.domains)

    def stuck(self, error: WaitTimeout) -> None:
        """A guest did not come to where it should have."""
        self.failed += 1
        print(f"\nIt does not go on: {error}")

    def ends(self, domains: Iterable[Domain]) -> None:
        """All must have powered off; silent if so."""
        for domain in domains:
            if domain.result is None or domain.result.reason != "poweroff":
                self.failed += 1
                print(f"\n{domain.name} did not power off: {domain.result}")
