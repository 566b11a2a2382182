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

from xenlike.domain import Domain, DomainStatistics, ShutdownInfo, WaitTimeout
from xenlike.engine import XenError
from xenlike.host import Host
from xenlike.lane import Stalled

__version__ = "0.1.0"
__all__ = ["Domain", "DomainStatistics", "Host", "ShutdownInfo", "Stalled", "WaitTimeout", "XenError", "__version__"]
