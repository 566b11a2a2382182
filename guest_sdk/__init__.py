"""The SDK for paravirtual guests in Python.

    from guest_sdk import Guest

    class Hello(Guest):
        async def main(self):
            self.console.print("hello from domain", self.domid)

A guest runs on its vCPU like any other: it makes real hypercalls with real structures in its own memory, and may await only what
this package offers. docs/tutorial.md builds one from nothing.
"""

from xenlike.backends import GuestFault
from xenlike.engine import XenError

from guest_sdk.events import Port
from guest_sdk.grants import GrantBusy, GrantMapping
from guest_sdk.guest import Guest
from guest_sdk.kernel import Future, GuestError, Task, Timeout
from guest_sdk.memory import Page

__all__ = ["Future", "GrantBusy", "GrantMapping", "Guest", "GuestError", "GuestFault", "Page", "Port", "Task", "Timeout",
           "XenError"]
