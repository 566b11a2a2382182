"""The xenstore nodes of a new domain (Xen docs/misc/xenstore-paths.pandoc; xen-abi 1.10). Called by: ``Host.create``."""

from __future__ import annotations

from typing import Any

from xenlike.toolstack.config import DomainConfig

__all__ = ["domain_nodes", "remove_domain_nodes"]

#: Directories that the guest may write.
_GUEST_WRITABLE = ("control/shutdown", "control/sysrq", "control/feature-poweroff", "control/feature-reboot",
                   "control/feature-suspend", "device/suspend/event-channel", "data", "drivers", "feature", "attr", "error")


def domain_nodes(xs: Any, domid: int, config: DomainConfig, *, store_port: int, store_mfn: int, console_port: int,
                 console_mfn: int) -> None:
    """Writes them, in one transaction. ``xs`` is dom0's direct client."""
    home, vm = f"/local/domain/{domid}", f"/vm/{config.uuid}"
    kib = config.memory // 1024
    values: dict[str, str | int] = {
        f"{vm}/uuid": str(config.uuid), f"{vm}/name": config.name,
        f"{home}/vm": vm, f"{home}/name": config.name, f"{home}/domid": domid,
        f"{home}/memory/static-max": config.maxmem // 1024, f"{home}/memory/target": kib, f"{home}/memory/videoram": 0,
        f"{home}/store/port": store_port, f"{home}/store/ring-ref": store_mfn,
        f"{home}/console/port": console_port, f"{home}/console/ring-ref": console_mfn, f"{home}/console/type": "xenconsoled",
        f"{home}/console/limit": 1048576, f"{home}/console/output": "pty", f"{home}/console/tty": "",
        f"{home}/console/backend": f"/local/domain/0/backend/console/{domid}/0", f"{home}/console/backend-id": 0,
        f"{home}/control/platform-feature-multiprocessor-suspend": 1, f"{home}/control/platform-feature-xs_reset_watches": 1,
    }
    for vcpu in range(config.maxvcpus):
        values[f"{home}/cpu/{vcpu}/availability"] = "online" if vcpu < config.vcpus else "offline"
    with xs.transaction() as t:
        t.mkdir(home)
        t.set_perms(home, ["n0", f"r{domid}"])
        t.mkdir(vm)
        t.set_perms(vm, ["n0", f"r{domid}"])
        for path, value in values.items():
            t.write(path, str(value))
        for directory in ("device", "backend"):
            t.mkdir(f"{home}/{directory}")
        for directory in _GUEST_WRITABLE:
            t.mkdir(f"{home}/{directory}")
            t.set_perms(f"{home}/{directory}", [f"n{domid}"])


def remove_domain_nodes(xs: Any, domid: int, config: DomainConfig) -> None:
    """The toolstack's part of a death; xenstore itself has dropped the nodes that the domain owned."""
    for path in (f"/local/domain/{domid}", f"/vm/{config.uuid}", f"/local/domain/0/backend/console/{domid}"):
        if xs.exists(path):
            xs.rm(path)
