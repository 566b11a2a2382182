"""Python guests as users write them: what works, what is refused, and what a failure looks like."""

import asyncio
import subprocess
import sys

import pytest

import xenlike
from guest_sdk import Future, Guest, GuestError, GuestFault, Timeout, XenError


@pytest.fixture
def host():
    with xenlike.Host(clock="virtual", seed=3) as host:
        yield host


def crash(host, guest, **settings):
    """Runs a guest that is to crash; returns how it ended."""
    domain = host.create(guest, memory="4M", **settings)
    result = domain.wait(timeout=100)
    assert result.reason == "crash", (result, domain.console.text)
    return result


def test_exception_is_a_crash_with_its_traceback(host):
    """A guest's author would not learn where it failed."""
    class Fails(Guest):
        async def main(self):
            self.inner()

        def inner(self):
            raise ValueError("the guest's own mistake")

    result = crash(host, Fails)
    assert result.crash_reason == "vcpu 0: ValueError: the guest's own mistake"
    assert "in inner" in result.traceback and "kernel.py" not in result.traceback


def test_nonzero_return_is_a_crash(host):
    """A guest could fail and be taken for well."""
    class Returns(Guest):
        async def main(self):
            return 3

    assert "main() returned 3" in crash(host, Returns).crash_reason


def test_foreign_awaitable_is_named(host):
    """Awaiting asyncio would hang the guest, or the host, without a word."""
    class Foreign(Guest):
        async def main(self):
            await asyncio.sleep(1)

    result = crash(host, Foreign)
    assert "guest" in result.traceback


def test_foreign_future_is_named(host):
    """The same for an object that yields something the kernel does not know."""
    class Odd:
        def __await__(self):
            yield "something else"

    class Foreign(Guest):
        async def main(self):
            await Odd()

    assert "only awaitables of guest_sdk work here" in crash(host, Foreign).crash_reason


def test_watchdog_stops_a_guest_that_never_awaits():
    """One guest in an endless loop would take the host and every other guest with it."""
    class Loops(Guest):
        async def main(self):
            while True:
                pass

    class Lives(Guest):
        async def main(self):
            for _ in range(5):
                await self.sleep(0.001)
            self.console.print("alive")

    with xenlike.Host(watchdog=0.3) as host:
        loops = host.create(Loops, memory="4M")
        lives = host.create(Lives, memory="4M")
        assert loops.wait(timeout=60).reason == "crash"
        assert "watchdog" in loops.result.traceback and "in main" in loops.result.traceback
        lives.wait(timeout=60)
        assert lives.console.text == "alive\n"


def test_blocking_hypercall_without_await_is_refused(host):
    """A guest would run on although its vCPU sleeps."""
    class Sync(Guest):
        async def main(self):
            self.hypercall.sched_op(1)

    assert "guest.halt()" in crash(host, Sync).crash_reason


def test_page_fault_says_where(host):
    """A wild pointer would read as nothing in particular."""
    class Wild(Guest):
        async def main(self):
            try:
                self.memory.read(0x1234, 8)
            except GuestFault as fault:
                assert (fault.va, fault.error_code) == (0x1234, 0)
            self.memory.write(0x5678, b"x")

    assert "write to 0x5678 (not mapped, error code 0x2)" in crash(host, Wild).crash_reason


def test_hypercalls_raw_and_by_name(host):
    """Numbers or structures would not reach the hypervisor as the ABI has them."""
    class Calls(Guest):
        async def main(self):
            assert self.hypercall(17, 0) == 0x00040011                     # xen_version
            assert self.hypercall(11) == self.hypercall(60) == self.hypercall(1 << 40) == -38
            arg = {"dom": 0x7FF0, "remote_dom": 0x7FF0}
            assert self.hypercall.event_channel_op(6, arg) == 0 and arg["port"] > 2
            assert self.hypercall.event_channel_op(4, {"port": 4000}) == -22
            assert self.hypercall.event_channel_op(4, 0xFFFF800000000000) == -14
            raw = bytearray(8)
            raw[0:2] = raw[2:4] = (0x7FF0).to_bytes(2, "little")
            assert self.hypercall.event_channel_op(6, raw) == 0 and int.from_bytes(raw[4:], "little") == arg["port"] + 1
            try:
                self.events.send(4000)
            except XenError as error:
                assert (error.name, error.op, error.domid) == ("EINVAL", "event_channel_op/send", self.domid)
            else:
                raise AssertionError

    assert host.create(Calls, memory="4M").wait(timeout=10) .reason == "poweroff"


def test_time(host):
    """Sleeping, computing or timeouts would not take the time they say, on the virtual clock to the nanosecond."""
    class Sleeps(Guest):
        async def main(self):
            before = self.now()
            await self.compute(5_000_000)
            assert 5_000_000 <= self.now() - before < 5_100_000, self.now() - before
            before = self.now()
            await self.sleep(0.25)
            assert 250_000_000 <= self.now() - before < 250_100_000
            port = self.events.alloc_unbound(self.domid)
            before = self.now()
            try:
                await port.wait(timeout=0.5)
            except Timeout:
                pass
            assert 500_000_000 <= self.now() - before < 500_100_000
            assert await self.poll([port], timeout=0.1) == 0
            assert 600_000_000 <= self.now() - before < 600_200_000

    assert host.create(Sleeps, memory="4M").wait(timeout=10).reason == "poweroff"


def test_xenstore_from_a_guest(host):
    """A guest's xenstore client would lose replies, watches or transactions."""
    class Store(Guest):
        async def main(self):
            xs = self.xenstore
            assert await xs.read("domid") == str(self.domid)
            watch = await xs.watch("data")
            assert await watch.next() == "data"
            await xs.write("data/a", "1")
            assert await watch.next() == "data/a"

            async def add(t):
                value = int(await t.read("data/a"))
                if value == 1:
                    await xs.write("data/a", "10")      # behind the transaction's back: it must be run again
                await t.write("data/a", value + 1)

            await xs.transaction(add)
            assert await xs.read("data/a") == "11"
            assert await xs.ls("data") == ["a"]
            await xs.rm("data/a")
            assert await xs.get("data/a", "gone") == "gone"
            for path, name in (("/local/domain/0/secret", "EACCES"), ("bad//path", "EINVAL")):
                try:
                    await xs.write(path, "x")
                except XenError as error:
                    assert error.name == name, (path, error)
                else:
                    raise AssertionError(path)
            big = "x" * 2000
            await xs.write("data/big", big)
            assert await xs.read("data/big") == big

    domain = host.create(Store, memory="4M")
    assert domain.wait(timeout=10).reason == "poweroff", domain.result


def test_console_both_ways(host):
    """Input would not arrive, or long output would lose bytes (the ring holds 2 KiB)."""
    class Echo(Guest):
        async def main(self):
            while (line := await self.console.readline()) != "quit":
                self.console.print("you said", line)
            self.console.print("x" * 10_000)

    domain = host.create(Echo, memory="4M")
    reader = domain.console.reader()
    domain.console.send("one\ntwo\n")
    domain.console.expect("you said one")
    domain.console.expect("you said two")
    assert list(reader.lines()) == ["you said one", "you said two"]
    domain.console.send("quit\n")
    assert domain.wait(timeout=10).reason == "poweroff"
    assert domain.console.lines[2] == "x" * 10_000
    assert reader.read() == b"x" * 10_000 + b"\n"


def test_expect_that_fails_shows_the_text(host):
    """Whoever waits in vain would not see for what."""
    class Speaks(Guest):
        async def main(self):
            self.console.print("something else")

    domain = host.create(Speaks, memory="4M")
    with pytest.raises(xenlike.WaitTimeout, match="something else"):
        domain.console.expect("never printed")


def test_hostile_console_ring(host):
    """Impossible indices in a guest's console ring would read or write outside it, or stop the others."""
    class Hostile(Guest):
        async def main(self):
            page = self.memory.window(self.memory.virt_base + self.memory.read_u64(0xFFFF800000000000 + 8 * (
                self.memory.start_info.console.domU.mfn)) * 4096).cast("I")
            page[771] = page[770] + 100_000
            self.events.send(self.memory.start_info.console.domU.evtchn)
            await self.sleep(0.01)
            page[769], page[768] = 7, 0xFFFFFFF0
            self.events.send(self.memory.start_info.console.domU.evtchn)
            self.shutdown()
            await self.halt()

    hostile = host.create(Hostile, memory="4M")
    assert hostile.wait(timeout=10).reason == "poweroff"

    class Fine(Guest):
        async def main(self):
            self.console.print("fine")

    fine = host.create(Fine, memory="4M")
    fine.wait(timeout=10)
    assert fine.console.text == "fine\n"


def test_stalled_names_each_wait(host):
    """With the virtual clock a deadlock would hang the test run instead of saying who waits for what."""
    class Waits(Guest):
        async def main(self):
            port = self.events.alloc_unbound(0)
            await port.wait()

    host.create(Waits, memory="4M", name="first")
    domain = host.create(Waits, memory="4M", name="second")
    with pytest.raises(xenlike.Stalled) as caught:
        domain.wait()
    text = str(caught.value)
    assert "(first) vcpu 0: blocked; task 'main'" in text and "(second)" in text and "test_python_guests.py" in text


def test_windows_and_page_tables(host):
    """A page that host code can write through a view would become a page table."""
    class Views(Guest):
        async def main(self):
            page = self.memory.alloc_zeroed()
            self.memory.make_readonly(page)
            self.memory.pin(page, 1)
            self.memory.unpin(page)
            self.memory.make_writable(page)
            view = page.view()
            self.memory.make_readonly(page)
            try:
                self.memory.pin(page, 1)
            except XenError as error:
                assert error.name == "EINVAL"
            else:
                raise AssertionError("pinned under a window")
            del view
            self.memory.pin(page, 1)

    domain = host.create(Views, memory="4M")
    assert domain.wait(timeout=10).reason == "poweroff", domain.result


def test_two_files_named_guest(host, tmp_path):
    """Two guests in files of one name would be one guest."""
    from xenlike.toolstack import parse_config

    domains = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "guest.py").write_text(
            f"from guest_sdk import Guest\nclass G(Guest):\n    async def main(self):\n        self.console.print({name!r})\n")
        config, _ = parse_config(f'name = "{name}"\nkernel = "guest.py:G"\nmemory = "4M"\n', str(folder / "x.cfg"))
        domains.append(host.create(config))
    host.wait(domains, timeout=10)
    assert [d.console.text for d in domains] == ["a\n", "b\n"]


def test_reboot_restarts(host):
    """on_reboot = "restart" (xl's default) would not start the guest again."""
    class Reboots(Guest):
        count = 0

        async def main(self):
            Reboots.count += 1
            self.console.print("boot", Reboots.count)
            if Reboots.count < 3:
                await self.console.drain()
                self.shutdown(1)
                await self.halt()

    domain = host.create(Reboots, memory="4M")
    assert domain.wait(timeout=10).reason == "reboot"
    assert host.wait_until(lambda: len(host.restarts) == 2 and host.restarts[-1].ended, timeout=10)
    assert host.restarts[-1].result.reason == "poweroff" and Reboots.count == 3


def test_shutdown_request(host):
    """Domain.shutdown() would not reach the guest."""
    class Obeys(Guest):
        async def main(self):
            await self.xenstore.wait_for("control/shutdown", lambda v: v == "poweroff")

    domain = host.create(Obeys, memory="4M")
    host.wait_until(lambda: False, timeout=0.01)
    domain.shutdown()
    assert domain.wait(timeout=10).reason == "poweroff"


def test_many_hosts_in_one_process():
    """Hosts would share state, or not give everything back."""
    class Hello(Guest):
        async def main(self):
            self.console.print("hello")

    hosts = [xenlike.Host(clock=clock) for clock in ("virtual", "real") * 3]
    domains = [h.create(Hello, memory="4M") for h in hosts]
    assert all(d.wait(timeout=30).reason == "poweroff" for d in domains)
    for h in hosts:
        h.close()


def test_fork_leaves_the_host_alone():
    """A forked child would stop the parent's threads or free its memory at exit."""
    script = """
import os, xenlike
from guest_sdk import Guest
class Hello(Guest):
    async def main(self):
        await self.sleep(0.05)
        self.console.print("hello")
with xenlike.Host() as host:
    domain = host.create(Hello, memory="4M")
    if os.fork() == 0:
        host.close()
        os._exit(0)
    assert os.wait()[1] == 0
    assert domain.wait(timeout=30).reason == "poweroff"
    print(domain.console.text)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "hello\n\n"), done.stderr


def test_future_between_vcpus(host):
    """Waking a task on another vCPU that sleeps would be lost."""
    class Two(Guest):
        async def main(self):
            ask, answer = Future(), Future()

            async def worker():
                answer.set(await ask * 2)

            self.start_vcpu(1, worker)
            await self.sleep(0.01)
            ask.set(21)
            assert await answer == 42

    domain = host.create(Two, memory="4M", vcpus=2)
    assert domain.wait(timeout=10).reason == "poweroff", domain.result


def test_start_vcpu_that_is_not_there(host):
    """The mistake would be an obscure error number."""
    class One(Guest):
        async def main(self):
            try:
                self.start_vcpu(5, self.main)
            except GuestError as error:
                assert "vcpus=1" in str(error)
            else:
                raise AssertionError

    domain = host.create(One, memory="4M")
    assert domain.wait(timeout=10).reason == "poweroff", domain.result


def test_a_guest_that_reads_no_events_stalls_nobody_for_good(host):
    """One guest that watches a node and never looks would stop every guest that writes there."""
    class Sleeper(Guest):
        async def main(self):
            watches = [await self.xenstore.watch(f"/local/domain/{self.domid + 1}/data/{n}") for n in range(30)]
            self.events.handlers[self.memory.start_info.store_evtchn] = lambda: None      # never reads its ring again
            assert watches
            await self.sleep(10_000)

    class Writer(Guest):
        async def main(self):
            await self.xenstore.write("data/x", "1")
            await self.xenstore.set_perms("data", ["b" + str(self.domid)])
            await self.sleep(1)
            for n in range(600):
                await self.xenstore.write(f"data/{n % 30}", "x" * 500)
            self.console.print("all written")

    host.create(Sleeper, memory="4M")
    writer = host.create(Writer, memory="4M")
    assert writer.wait(timeout=1000).reason == "poweroff", writer.result
    assert writer.console.text == "all written\n"


def test_sleeping_for_nothing_takes_time(host):
    """A guest that only ever sleeps for 0 s would stop the virtual clock: no timeout would ever come."""
    class Spins(Guest):
        async def main(self):
            while True:
                await self.sleep(0)

    domain = host.create(Spins, memory="4M")
    with pytest.raises(xenlike.WaitTimeout):
        domain.wait(timeout=0.01)


def test_settings_that_mean_nothing_are_named(host):
    """A typo in a setting would have no effect and no message."""
    class Hello(Guest):
        async def main(self):
            pass

    with pytest.warns(UserWarning, match="mem: is not a known key"):
        host.create(Hello, mem="1M", memory="4M").wait(timeout=10)


def test_what_is_not_a_guest_is_said(host):
    """The mistake would show as an AttributeError of ours."""
    class NoGuest:
        pass

    class NoSuper(Guest):
        def __init__(self):
            pass

    for wrong in (NoGuest, NoSuper):
        with pytest.raises(Exception, match="derive it from guest_sdk.Guest"):
            host.create(wrong, memory="4M")
    with pytest.raises(TypeError, match="class"):
        host.create(NoSuper(), memory="4M")
    with pytest.raises(Exception, match="128 is the most"):
        host.create(type("Many", (Guest,), {}), memory="4M", vcpus=200)
    assert host.domains == []


def test_an_unclosed_disk_leaves_no_zombie(host, tmp_path):
    """A guest that ends with its disk open would keep a frame and its id."""
    (tmp_path / "disk.img").write_bytes(bytes(65536))

    class Opens(Guest):
        async def main(self):
            self.disk = await self.block("xvda")
            await self.disk.read(0, 8)

    kept = [host.create(Opens, memory="4M", name=f"d{n}", disk=[f"{tmp_path}/disk.img,raw,xvda,rw"]) for n in range(3)]
    host.wait(kept, timeout=10)
    before = host.usage()
    more = host.create(Opens, memory="4M", disk=[f"{tmp_path}/disk.img,raw,xvda,rw"])
    assert more.wait(timeout=10).reason == "poweroff"
    assert host.usage()["frames_free"] == before["frames_free"] and host.usage()["domains"] == 1


def test_xenstore_errors_say_what_was_asked(host):
    """An ENOENT in a guest with a hundred reads would not say which."""
    class Reads(Guest):
        async def main(self):
            await self.xenstore.read("data/nothing")

    assert "xenstore read data/nothing: ENOENT (domain" in crash(host, Reads).crash_reason


def test_rename_restart_keeps_the_old_domain(host):
    """on_crash = "rename-restart" would lose what somebody wanted to look at, or not start anew."""
    class CrashesOnce(Guest):
        count = 0

        async def main(self):
            CrashesOnce.count += 1
            if CrashesOnce.count == 1:
                raise RuntimeError("the first time")

    first = host.create(CrashesOnce, memory="4M", name="it", on_crash="rename-restart")
    assert first.wait(timeout=10).reason == "crash"
    assert host.wait_until(lambda: host.restarts and host.restarts[0].ended, timeout=10)
    assert [d.name for d in host.domains] == [first.name] == ["it-1"]
    assert host.restarts[0].name == "it" and host.restarts[0].result.reason == "poweroff"
