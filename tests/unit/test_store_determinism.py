"""The same requests give the same bytes, whatever the hash seed: replayed runs and trace digests depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_HISTORY = """
import hashlib
from xenlike.store import RingClient, RingTransport, Store, wire

store, digest = Store(), hashlib.sha256()
xs = store.direct()
rings = []
for domid in range(1, 6):
    page = bytearray(4096)
    rings.append((page, RingTransport(store, domid, page, lambda: None), RingClient(page)))
    xs.introduce(domid, domid, 1)
    for name in ("zeta", "alpha", "data/x", "device/vif/0", "device/vbd/51712"):
        xs.write(f"/local/domain/{domid}/{name}", name)
    xs.set_perms(f"/local/domain/{domid}", [f"n{domid}", "r1", "r2"])
    xs.watch(f"/local/domain/{domid}", f"t{domid}", lambda path, token: digest.update(f"{path} {token}".encode()))
for turn in range(30):
    for number, (page, transport, client) in enumerate(rings, 1):
        for token in (b"a", b"b"):
            client.request(wire.Type.WATCH, b"/local/domain/%d\\0%s%d\\0" % (turn % 5 + 1, token, turn))
        client.request(wire.Type.WRITE, b"data/%d\\0value" % turn)
        client.request(wire.Type.DIRECTORY, b"/local/domain/1\\0")
        client.service()
        transport.service()
        client.service()
        digest.update(bytes(page))
    if turn == 20:
        store.domain_died(3)
        rings.pop(2)[1].detach()
print(digest.hexdigest(), xs.ls("/local/domain"), dict(store.statistics().counters))
"""


def test_hash_seeds_make_no_difference():
    """Ring pages and callbacks of a busy store, digested, in processes with different hash seeds."""
    root = Path(__file__).parents[2]
    outputs = set()
    for seed in ("0", "1", "4711"):
        environment = dict(os.environ, PYTHONHASHSEED=seed, PYTHONPATH=str(root))
        done = subprocess.run(
            [sys.executable, "-c", _HISTORY], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert "['1', '2', '4', '5']" in outputs.pop()
