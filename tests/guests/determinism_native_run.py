"""One run of C guests with the virtual clock; prints digest, time and instruction counts. Run by test_determinism in processes of its own."""

import sys

import xenlike
from guest_sdk.examples.pingpong import Pong


def main(pingpong: str, smp: str, seed: int) -> None:
    with xenlike.Host(clock="virtual", seed=seed) as host:
        pings = [host.create(pingpong, memory="8M", extra=f"ping peer={peer}", paused=True, on_poweroff="preserve") for peer in (3, 4)]
        host.create(pingpong, memory="8M", extra="pong peer=1", on_poweroff="preserve")
        host.create(Pong, memory="4M", extra="peer=2", on_poweroff="preserve")
        host.create(smp, memory="8M", vcpus=4, on_poweroff="preserve")
        for ping in pings:
            ping.unpause()
        domains = host.domains
        host.wait(timeout=100)
        assert all(d.result.reason == "poweroff" for d in domains), [(d.result, d.console.text) for d in domains]
        print(f"{host.trace_digest():016x} {host.now()} {[d.statistics().counters['instructions'] for d in domains]}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
