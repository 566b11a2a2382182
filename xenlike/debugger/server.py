"""gdb's remote protocol for one domain: ``gdb -ex 'target remote :1234' image``.

Owns: the listening socket (loopback only), one connection, the table of packets. Called by: ``xenlike run --gdb``, users. Everything
happens on the lane. All-stop mode; a vCPU n is gdb's thread n + 1. Breakpoints are kept by the hypervisor, so guests never see changed
code. Packets by the GDB manual, appendix E.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from xenlike.engine import XenError, lib

from . import registers
from .report import events_text, vcpu_text, walk_text
from .rsp import INTERRUPT, PACKET_SIZE, Framer, escape
from .target import Stop, Target

if TYPE_CHECKING:
    from xenlike.domain import Domain

__all__ = ["GdbServer"]

_OK, _UNKNOWN = b"OK", b""
_SIGINT, _SIGTRAP, _SIGABRT = 2, 5, 6
_BREAKS = {b"0": lib.DEBUG_EXEC, b"1": lib.DEBUG_EXEC, b"2": lib.DEBUG_WRITE, b"3": lib.DEBUG_READ, b"4": lib.DEBUG_ACCESS}
_OUTPUT_MAX = 1 << 22           # bytes that wait for a peer that does not read


def _error(number: int) -> bytes:
    return b"E%02x" % (number & 255)


class GdbServer:
    """Listens on 127.0.0.1:``port`` (0: any; ``port`` says which) for ``domain``. The domain stops when gdb connects.

    wait: stop it now; it runs when gdb says so. Raises OSError: the port is taken; XenError: not a guest of machine code.
    """

    def __init__(self, domain: "Domain", port: int, *, wait: bool = False) -> None:
        self._domain = domain
        self._lane = domain.host.lane
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._peer: socket.socket | None = None
        self._framer = Framer()
        self._out = bytearray()
        self._target: Target | None = None
        self._thread = 0                # vCPU that g, m and the like are about
        try:
            if wait:
                self._target = self._lane.call(lambda: Target(domain, self._stopped))
        except BaseException:
            self._listener.close()
            raise
        self._lane.call(lambda: self._lane.add_reader(self._listener.fileno(), self._accept))

    def close(self) -> None:
        """Lets the domain go and stops listening. Idempotent."""
        self._lane.call(self._close)

    def _close(self) -> None:
        self._drop()
        if self._listener.fileno() >= 0:
            self._lane.remove_reader(self._listener.fileno())
            self._listener.close()

    # ---- the connection ----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        if self._peer or self._domain.destroyed:
            peer.close()
            return
        try:
            if self._target is None:
                self._target = Target(self._domain, self._stopped)
        except XenError:
            peer.close()
            return
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer, self._framer, self._thread = peer, Framer(), 0
        self._out.clear()
        self._lane.add_reader(peer.fileno(), self._readable)

    def _drop(self) -> None:
        """The connection is over; without one nobody could let the domain go on, so it goes on."""
        if self._peer:
            self._lane.remove_reader(self._peer.fileno())
            self._lane.remove_writer(self._peer.fileno())
            self._peer.close()
            self._peer = None
        if self._target:
            target, self._target = self._target, None
            target.detach()

    def _readable(self) -> None:
        assert self._peer
        try:
            data = self._peer.recv(PACKET_SIZE)
            if not data:
                self._drop()
                return
            for packet in self._framer.feed(data):
                self._send(b"")
                if packet == INTERRUPT:
                    self._interrupt()
                else:
                    self._answer(packet)
                if not self._peer:
                    return
            self._send(b"")
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._drop()

    def _send(self, data: bytes) -> None:
        if not self._peer:
            return
        self._out += self._framer.acks + data
        self._framer.acks.clear()
        self._flush()

    def _flush(self) -> None:
        assert self._peer
        try:
            if self._out:
                del self._out[:self._peer.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()           # the reader sees the end
        if len(self._out) > _OUTPUT_MAX:
            self._drop()
        elif self._out:
            self._lane.add_writer(self._peer.fileno(), self._flush)
        else:
            self._lane.remove_writer(self._peer.fileno())

    def _answer(self, packet: bytes) -> None:
        reply = self._dispatch(packet)
        if reply is not None and self._peer:
            self._send(Framer.frame(reply))
            if packet == b"QStartNoAckMode":
                self._framer.no_ack = True

    def _dispatch(self, packet: bytes) -> bytes | None:
        """The reply; None: none now (it runs), or it was sent."""
        name = next((name for name in _PACKETS if packet.startswith(name)), None)
        if name is None:
            return _UNKNOWN
        try:
            return _PACKETS[name](self, packet[len(name):])
        except XenError as error:
            return _error(error.errno)
        except (ValueError, IndexError, OverflowError):      # the last: a number that no argument in C can hold
            return _error(22)

    @property
    def target(self) -> Target:
        """The domain; there is one whenever a packet is being answered."""
        assert self._target
        return self._target

    # ---- stops -------------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        self.target.interrupt()

    def _stopped(self, stop: Stop) -> None:
        if self._peer:
            self._thread = stop.vcpu
            self._send(Framer.frame(self._stop_reply(stop)))

    def _stop_reply(self, stop: Stop) -> bytes:
        ended = self.target.ended
        if ended is not None and ended.reason not in ("crash", "watchdog"):
            return b"W00"
        signal = _SIGABRT if ended else _SIGINT if stop.kind == "asked" else _SIGTRAP
        what = b""
        if stop.kind == lib.DEBUG_WATCHPOINT:
            what = b"watch:%x;" % stop.address
        elif stop.kind == lib.DEBUG_BREAKPOINT:
            what = b"swbreak:;"
        return b"T%02xthread:%x;%s" % (signal, stop.vcpu + 1, what)

    def _why(self, _rest: bytes) -> bytes:
        return self._stop_reply(self.target.stop)

    # ---- threads -----------------------------------------------------------------------------------------------------

    def _thread_of(self, text: bytes) -> int:
        number = int(text, 16) if text not in (b"", b"-1") else 0
        if number > self.target.nr_vcpus:
            raise ValueError("no such thread")
        return number - 1 if number > 0 else self._thread

    def _set_thread(self, rest: bytes) -> bytes:
        if rest[:1] == b"g":
            self._thread = self._thread_of(rest[1:])
        return _OK

    def _alive(self, rest: bytes) -> bytes:
        self._thread_of(rest)
        return _OK

    def _threads(self, _rest: bytes) -> bytes:
        return b"m" + b",".join(b"%x" % (n + 1) for n in range(self.target.nr_vcpus))

    def _thread_info(self, rest: bytes) -> bytes:
        return self.target.describe(self._thread_of(rest)).encode().hex().encode()

    # ---- registers and memory ----------------------------------------------------------------------------------------

    def _read_registers(self, _rest: bytes) -> bytes:
        return registers.read_all(self.target.registers(self._thread)).hex().encode()

    def _write_registers(self, rest: bytes) -> bytes:
        data, at = bytes.fromhex(rest.decode()), 0
        regs = self.target.registers(self._thread)
        for register in registers.REGISTERS:
            part, at = data[at:at + register.size], at + register.size
            if register.writable and part:
                registers.write_one(regs, register, part)
        self.target.set_registers(self._thread, regs)
        return _OK

    def _read_register(self, rest: bytes) -> bytes:
        return registers.read_one(self.target.registers(self._thread), registers.REGISTERS[int(rest, 16)]).hex().encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, _, value = rest.partition(b"=")
        regs = self.target.registers(self._thread)
        registers.write_one(regs, registers.REGISTERS[int(number, 16)], bytes.fromhex(value.decode()))
        self.target.set_registers(self._thread, regs)
        return _OK

    def _read_memory(self, rest: bytes) -> bytes:
        at, n = (int(x, 16) for x in rest.split(b","))
        data = self.target.read(self._thread, at, min(n, PACKET_SIZE // 2 - 8))
        return data.hex().encode() if data or not n else _error(lib.XEN_EFAULT)

    def _write_memory(self, rest: bytes, *, binary: bool = False) -> bytes:
        head, _, data = rest.partition(b":")
        at, n = (int(x, 16) for x in head.split(b","))
        data = data if binary else bytes.fromhex(data.decode())
        if len(data) != n:
            raise ValueError("length")
        self.target.write(self._thread, at, data)
        return _OK

    def _write_binary(self, rest: bytes) -> bytes:
        return self._write_memory(rest, binary=True)

    # ---- running -----------------------------------------------------------------------------------------------------

    def _go(self, vcpu: int | None) -> bytes | None:
        if self.target.ended is not None:       # a crash was looked at: now it is over
            target, self._target = self.target, None
            self._send(Framer.frame(b"X%02x" % _SIGABRT))
            target.detach()
            return None
        if vcpu is None:
            self.target.resume()
        else:
            self.target.step(vcpu)
        return None

    def _continue(self, _rest: bytes) -> bytes | None:
        return self._go(None)

    def _step(self, _rest: bytes) -> bytes | None:
        return self._go(self._thread)

    def _vcont(self, rest: bytes) -> bytes | None:
        """The first action that names a thread to step steps it; else all go on."""
        for action in rest.split(b";")[1:]:
            verb, _, thread = action.partition(b":")
            if verb[:1] in b"sS":
                return self._go(self._thread_of(thread))
            if verb[:1] in b"cC":
                return self._go(None)
        return _error(22)

    def _break(self, rest: bytes, *, add: bool) -> bytes:
        kind, address, length = rest.split(b";")[0].split(b",")
        if kind not in _BREAKS:
            return _UNKNOWN
        what = _BREAKS[kind]
        self.target.breakpoint(what, int(address, 16), 1 if what == lib.DEBUG_EXEC else int(length, 16), add=add)
        return _OK

    def _insert(self, rest: bytes) -> bytes:
        return self._break(rest, add=True)

    def _remove(self, rest: bytes) -> bytes:
        return self._break(rest, add=False)

    def _kill(self, _rest: bytes) -> bytes | None:
        target, self._target = self.target, None
        target.kill()
        self._send(Framer.frame(_OK))
        self._drop()
        return None

    def _detach(self, _rest: bytes) -> bytes | None:
        self._send(Framer.frame(_OK))
        self._drop()
        return None

    # ---- queries -----------------------------------------------------------------------------------------------------

    def _supported(self, _rest: bytes) -> bytes:
        return (b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+;qXfer:threads:read-" % PACKET_SIZE)

    def _features(self, rest: bytes) -> bytes:
        annex, _, where = rest.partition(b":")
        if annex != b"target.xml":
            return b"E00"
        start, n = (int(x, 16) for x in where.split(b","))
        text = registers.target_xml()
        part = escape(text[start:start + min(n, PACKET_SIZE - 8)])
        return (b"m" if start + n < len(text) else b"l") + part

    def _monitor(self, rest: bytes) -> bytes:
        """``monitor COMMAND`` of gdb."""
        words = bytes.fromhex(rest.decode()).decode(errors="replace").split()
        command = _MONITOR.get(words[0] if words else "help", (None, ""))[0]
        text = command(self, words[1:]) if command else "".join(f"{name:<14}{doc}\n" for name, (_, doc) in _MONITOR.items())
        return text.encode().hex().encode() or _OK

    def _monitor_walk(self, words: list[str]) -> str:
        return walk_text(self.target.domain, self._thread, int(words[0], 0)) + "\n" if words else "walk ADDRESS\n"

    def _monitor_events(self, words: list[str]) -> str:
        return events_text(self.target.domain, int(words[0]) if words else 20) + "\n"

    def _monitor_vcpu(self, _words: list[str]) -> str:
        return vcpu_text(self.target.domain, self._thread) + "\n"


_MONITOR: dict[str, tuple[Callable[[GdbServer, list[str]], str] | None, str]] = {
    "walk": (GdbServer._monitor_walk, "ADDRESS: the page tables behind a virtual address"),
    "events": (GdbServer._monitor_events, "[N]: the domain's last trace events"),
    "vcpu": (GdbServer._monitor_vcpu, "all registers of the selected vCPU, control registers too"),
    "help": (None, "this"),
}

#: Packets by how they begin; longer names before shorter ones.
_PACKETS: dict[bytes, Callable[[GdbServer, bytes], bytes | None]] = {
    b"qSupported": GdbServer._supported,
    b"QStartNoAckMode": lambda self, rest: _OK,
    b"qXfer:features:read:": GdbServer._features,
    b"qfThreadInfo": GdbServer._threads,
    b"qsThreadInfo": lambda self, rest: b"l",
    b"qThreadExtraInfo,": GdbServer._thread_info,
    b"qC": lambda self, rest: b"QC%x" % (self._thread + 1),
    b"qAttached": lambda self, rest: b"1",
    b"qRcmd,": GdbServer._monitor,
    b"vCont?": lambda self, rest: b"vCont;c;C;s;S",
    b"vCont": GdbServer._vcont,
    b"vKill": GdbServer._kill,
    b"?": GdbServer._why,
    b"g": GdbServer._read_registers,
    b"G": GdbServer._write_registers,
    b"p": GdbServer._read_register,
    b"P": GdbServer._write_register,
    b"m": GdbServer._read_memory,
    b"M": GdbServer._write_memory,
    b"X": GdbServer._write_binary,
    b"Z": GdbServer._insert,
    b"z": GdbServer._remove,
    b"H": GdbServer._set_thread,
    b"T": GdbServer._alive,
    b"c": GdbServer._continue,
    b"C": GdbServer._continue,
    b"s": GdbServer._step,
    b"S": GdbServer._step,
    b"D": GdbServer._detach,
    b"k": GdbServer._kill,
}
