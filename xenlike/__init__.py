"""xenlike: Xen in a Python package. A paravirtualized hypervisor with the real Xen ABI, in one Linux process.

    import xenlike
    from guest_sdk import Guest

    class Hello(Guest):
        async def main(self):
            self.console.print("hello from domain", self.domid)

    with xenlike.Host() as host:
        domain = host.create(Hello, memory="16M")
        print(domain.wait().reason, domain.console.text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xenlike.domain import Domain, DomainStatistics, ShutdownInfo, WaitTimeout
    from xenlike.engine import XenError
    from xenlike.host import Host
    from xenlike.lane import Stalled

__version__ = "0.1.0"
__all__ = ["Domain", "DomainStatistics", "Host", "ShutdownInfo", "Stalled", "WaitTimeout", "XenError", "__version__"]

# Found at first use: pytest's plugin and `xenlike --version` import this package where the C core may not be built.
_HOME = {"Domain": "domain", "DomainStatistics": "domain", "ShutdownInfo": "domain", "WaitTimeout": "domain",
         "XenError": "engine", "Host": "host", "Stalled": "lane"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
