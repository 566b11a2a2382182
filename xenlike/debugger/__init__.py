"""gdb for guests: a remote stub on a TCP port, one domain a server.

``GdbServer(domain, port)`` is the way in; docs/debugging.md is for people. Made of: ``rsp`` (packets), ``registers`` (the table of what
gdb calls registers), ``target`` (the stopped domain), ``server`` (the commands of the protocol).
"""

from .server import GdbServer

__all__ = ["GdbServer"]
