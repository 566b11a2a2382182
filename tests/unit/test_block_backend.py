"""Negotiation of the block back end, against the real xenstore and a hypervisor that only keeps books.

If it fails: guests of some kind (Linux, Mini-OS, GRUB) do not get their disk, a hand-over from boot loader to kernel
hangs, or what a guest writes into its own nodes takes domain 0 down.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlike.devices.block import BlockService, ImageError, open_image
from xenlike.devices.block.negotiate import NegotiationError, Step, next_step, parse_front
from xenlike.devices.block.xenbus import XenbusState as S
from xenlike.devices.block.xenbus import parse_state
from xenlike.store import Store, StoreError

DOMID, DEVICE = 7, 51712
FRONT = f"/local/domain/{DOMID}/device/vbd/{DEVICE}"
BACK = f"/local/domain/0/backend/vbd/{DOMID}/{DEVICE}"
ERROR = f"/local/domain/0/error/backend/vbd/{DOMID}/{DEVICE}/error"


class Refused(Exception):
    errno = 22


class FakeOps:
    """Keeps what is bound and attached; fails where told to."""

    def __init__(self):
        self.ports, self.attached, self.calls, self.fail = set(), {}, [], None
        self._next = 100

    def _take(self, name):
        self.calls.append(name)
        if self.fail == name:
            raise Refused(f"{name}: Invalid argument")
        self._next += 1
        return self._next

    def bind_interdomain(self, front_domid, remote_port):
        port = self._take("bind")
        self.ports.add(port)
        return port

    def close_port(self, port):
        self.ports.remove(port)
        assert port not in {config.port for config in self.attached.values()}, "a port was closed under the data path"
        self.calls.append("close")

    def attach(self, config):
        assert config.port in self.ports
        ident = self._take("attach")
        self.attached[ident] = config
        return ident

    def detach(self, ident):
        del self.attached[ident]
        self.calls.append("detach")


class World:
    """A store with one domain and one disk, and the guest's own (unprivileged) connection."""

    def __init__(self, path, **options):
        self.store = Store()
        self.xs = self.store.direct(0)
        self.xs.write(f"/local/domain/{DOMID}", "")
        self.xs.set_perms(f"/local/domain/{DOMID}", ["n0", f"r{DOMID}"])
        self.guest = self.store.direct(DOMID)
        self.ops = FakeOps()
        self.service = BlockService(self.xs, self.ops)
        self.backend = self.service.add(DOMID, device=DEVICE, vdev="xvda", path=path, **options)

    def publish(self, state, **keys):
        """What a front end writes: keys and state in one transaction."""
        with self.guest.transaction() as t:
            for key, value in keys.items():
                t.write(f"{FRONT}/{key.replace('_', '-')}", str(value))
            t.write(f"{FRONT}/state", str(int(state)))

    def connect(self, state=S.INITIALISED, **keys):
        self.publish(state, **({"ring_ref": 8, "event_channel": 5} | keys))

    @property
    def state(self):
        return S(int(self.guest.read(f"{BACK}/state")))

    def settled(self):
        """Nothing is held."""
        return not self.ops.ports and not self.ops.attached


@pytest.fixture(scope="session")
def disk_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("block") / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return str(path)


@pytest.fixture
def world(disk_file):
    return World(disk_file)


# --- the ordinary ways ----------------------------------------------------------------------------------------------

def test_linux_connects(world):
    """blkfront waits for InitWait, says Initialised, and reads the size once we say Connected."""
    assert world.state is S.INIT_WAIT
    read = world.guest.read
    assert read(f"{FRONT}/backend") == BACK and read(f"{BACK}/frontend") == FRONT
    assert read(f"{BACK}/feature-flush-cache") == "1" and read(f"{BACK}/max-ring-page-order") == "2"
    world.connect(protocol="x86_64-abi", feature_persistent=1)
    assert world.state is S.CONNECTED
    assert (read(f"{BACK}/sectors"), read(f"{BACK}/sector-size"), read(f"{BACK}/info")) == ("2048", "512", "0")
    (config,) = world.ops.attached.values()
    assert (config.front, config.ring_refs) == (DOMID, (8,))
    world.publish(S.CONNECTED)
    assert world.ops.calls == ["bind", "attach"], "a front end's Connected must not connect it again"


def test_size_is_there_when_connected_is_seen(world):
    """A front end reads `sectors` as soon as it sees Connected: both must appear together."""
    seen = []
    world.guest.watch(f"{BACK}/state", "t", lambda path, token: seen.append(
        (world.guest.read(f"{BACK}/state"), world.guest.read(f"{BACK}/sectors", default=None))))
    world.connect()
    assert ("4", "2048") in seen and ("4", None) not in seen


def test_mini_os_does_not_wait(world):
    """Mini-OS writes its keys and Connected at once."""
    world.connect(S.CONNECTED)
    assert world.state is S.CONNECTED and len(world.ops.attached) == 1


def test_grub_hands_over_to_linux(world):
    """GRUB connects, closes, blanks its keys and leaves state Initialising; Linux must find InitWait and connect anew."""
    world.connect(ring_ref=9, event_channel=6)
    assert world.state is S.CONNECTED
    world.publish(S.CLOSED)
    assert world.state is S.CLOSED and world.settled()
    world.publish(S.INITIALISING, ring_ref="", event_channel="")
    assert world.state is S.INIT_WAIT
    world.connect(ring_ref=300, event_channel=12)
    assert world.state is S.CONNECTED
    assert [config.ring_refs for config in world.ops.attached.values()] == [(300,)]


def test_closing_serves_the_ring_until_closed(world):
    """A front end may flush after it said Closing: its ring must be served until it says Closed."""
    world.connect()
    world.publish(S.CLOSING)
    assert world.state is S.CLOSING and len(world.ops.attached) == 1
    world.publish(S.CLOSED)
    assert world.state is S.CLOSED and world.settled()


def test_mini_os_comes_back_without_a_pause(world):
    """Closed -> Connected, with Initialising overwritten before anybody looked."""
    world.connect(S.CONNECTED)
    world.publish(S.CLOSED)
    world.connect(S.CONNECTED, ring_ref=77)
    assert world.state is S.CONNECTED and len(world.ops.attached) == 1


def test_restarted_driver_without_closing(world):
    """A guest that resets (kexec) begins at Initialising out of Connected: the old ring is dropped."""
    world.connect()
    world.publish(S.INITIALISING)
    assert world.state is S.INIT_WAIT and world.settled()


def test_rings_of_several_pages(world):
    """ring-page-order names 1 << order references, one key each; num-ring-pages is the older spelling."""
    world.connect(ring_page_order=2, **{f"ring_ref{n}": 20 + n for n in range(4)})
    assert [config.ring_refs for config in world.ops.attached.values()] == [(20, 21, 22, 23)]
    assert parse_front({"num-ring-pages": "2", "ring-ref0": "1", "ring-ref1": "2", "event-channel": "3"}.get).refs == (1, 2)
    assert parse_front({"ring-page-order": "0", "ring-ref0": "1", "event-channel": "3"}.get).refs == (1,)


def test_read_only_disk_says_so(disk_file):
    """Linux sets the disk read-only from `info`; libxl's tools read `mode`."""
    world = World(disk_file, writable=False)
    world.connect()
    assert (world.guest.read(f"{BACK}/info"), world.guest.read(f"{BACK}/mode")) == ("4", "r")
    assert world.guest.read(f"{BACK}/feature-discard") == "0"


def test_empty_drive_never_connects():
    """A CD drive without medium announces itself and waits."""
    world = World(None, cdrom=True, writable=False)
    world.connect()
    assert world.state is S.INIT_WAIT and world.settled()


# --- permissions ----------------------------------------------------------------------------------------------------

def test_guest_may_read_but_not_write_the_back_end(world):
    """params and state of the back end decide what is served: a guest that can write them chooses the host's file."""
    for key in ("state", "params", "sectors"):
        with pytest.raises(StoreError, match="EACCES"):
            world.guest.write(f"{BACK}/{key}", "4")
    assert world.xs.get_perms(FRONT) == [f"n{DOMID}", "r0"] and world.xs.get_perms(f"{FRONT}/state") == [f"n{DOMID}", "r0"]
    assert world.xs.get_perms(f"{BACK}/state") == ["n0", f"r{DOMID}"]
    with pytest.raises(StoreError, match="EACCES"):
        world.store.direct(DOMID + 1).read(f"{FRONT}/state")


# --- taking a disk away ---------------------------------------------------------------------------------------------

def test_block_detach_asks_the_guest(world):
    """block-detach: online=0, Closing; the guest answers Closing, Closed; then every node is gone."""
    world.connect()
    world.service.remove(DOMID, DEVICE)
    assert world.state is S.CLOSING and len(world.ops.attached) == 1
    world.publish(S.CLOSING)
    world.publish(S.CLOSED)
    assert world.settled() and world.service.get(DOMID, DEVICE) is None
    assert not world.xs.exists(BACK) and not world.xs.exists(FRONT)
    assert world.xs.exists(f"/local/domain/{DOMID}") and not world.xs.exists("/local/domain/0/backend/vbd")


def test_block_detach_of_a_disk_that_nobody_uses(world):
    """No driver has connected: nobody will answer, and detach must not wait for it."""
    world.service.remove(DOMID, DEVICE)
    assert world.service.get(DOMID, DEVICE) is None and not world.xs.exists(FRONT)


def test_domain_death_drops_everything(world):
    """After a destroy neither ports, rings, nodes, watches nor descriptors may be left."""
    world.connect()
    watches = world.store.statistics().watches
    fd = world.backend.image.fd
    world.store.domain_died(DOMID)
    world.service.domain_died(DOMID)
    assert world.settled() and not world.xs.exists("/local/domain/0/backend/vbd")
    assert world.store.statistics().watches == watches - 3
    with pytest.raises(OSError):
        os.fstat(fd)
    world.service.domain_died(DOMID)        # twice is harmless


def test_forced_removal_from_outside(world):
    """xenstore-rm of the back end's directory by an administrator."""
    world.connect()
    world.xs.rm(BACK)
    assert world.settled() and not world.xs.exists(BACK) and not world.xs.exists(FRONT)


def test_same_disk_twice_is_refused(world, disk_file):
    """A second disk of the same number would share nodes with the first."""
    with pytest.raises(ValueError, match="xvda"):
        world.service.add(DOMID, device=DEVICE, vdev="xvda", path=disk_file)


# --- hostile front ends ---------------------------------------------------------------------------------------------

GOOD = {"ring-ref": "8", "event-channel": "5"}


@pytest.mark.parametrize(("keys", "say"), [
    ({"ring-ref": None}, "ring-ref is missing"),
    ({"event-channel": None}, "event-channel is missing"),
    ({"event-channel": ""}, "event-channel ''"),
    ({"ring-ref": "-1"}, "ring-ref '-1'"),
    ({"ring-ref": "0x10"}, "no unsigned"),
    ({"ring-ref": "4294967296"}, "no unsigned"),
    ({"ring-ref": "1_0"}, "no unsigned"),
    ({"ring-ref": "\u0663"}, "no unsigned"),
    ({"ring-ref": "9" * 1000}, "no unsigned"),
    ({"protocol": "x86_32-abi"}, "x86_32-abi"),
    ({"ring-page-order": "3"}, "max-ring-page-order is 2"),
    ({"ring-page-order": "4294967295"}, "max-ring-page-order is 2"),
    ({"ring-page-order": "1", "ring-ref0": "4"}, "ring-ref1 is missing"),
    ({"ring-page-order": "1", "ring-ref0": "4", "ring-ref1": "4"}, "not distinct"),
    ({"num-ring-pages": "3"}, "power of two"),
    ({"num-ring-pages": "0"}, "power of two"),
    ({"multi-queue-num-queues": "2"}, "one queue"),
])
def test_malformed_keys_close_with_a_reason(world, keys, say):
    """Whatever a front end writes gets an error node and Closing; and correct keys afterwards work."""
    with pytest.raises(NegotiationError):
        parse_front({k: v for k, v in (GOOD | keys).items() if v is not None}.get)
    world.publish(S.INITIALISED, **{k: v for k, v in (GOOD | keys).items() if v is not None})
    assert world.state is S.CLOSING and world.settled()
    assert say in world.xs.read(ERROR) and world.xs.read(ERROR).split()[0] in ("22", "95")
    for key in keys:
        world.guest.rm(f"{FRONT}/{key}")
    world.publish(S.CLOSED)
    world.publish(S.INITIALISING)
    assert world.state is S.INIT_WAIT and not world.xs.exists(ERROR)
    world.connect()
    assert world.state is S.CONNECTED


@pytest.mark.parametrize("step", ["bind", "attach"])
def test_refusal_by_the_hypervisor_leaks_nothing(world, step):
    """A port that is not there, a reference that is not granted: nothing stays bound."""
    world.ops.fail = step
    world.connect()
    assert world.state is S.CLOSING and world.settled()
    assert world.xs.read(ERROR).startswith("22 ")


def test_data_path_stops(world):
    """The ring's indices went wild: the data path reports it, the connection is dropped, the guest hears of it."""
    world.connect()
    (config,) = world.ops.attached.values()
    world.service.io_stopped(config.cookie, 1)
    assert world.state is S.CLOSING and world.settled() and "index" in world.xs.read(ERROR)
    world.service.io_stopped(config.cookie, 1)          # late reports are harmless
    world.service.io_stopped(12345, 1)


@pytest.mark.parametrize("text", ["nonsense", "-4", "4.0", "99", "\0", "٣"])
def test_state_that_is_none(world, text):
    """A state outside the protocol is refused; 0 and the empty string mean unknown."""
    assert parse_state(text) is None and parse_state("") is S.UNKNOWN
    world.guest.write(f"{FRONT}/state", text)
    assert world.state is S.CLOSING


def test_guest_removes_its_own_nodes(world):
    """rm of the device by the guest in mid-connection ends the connection and the disk, nothing more."""
    world.connect()
    world.guest.rm(FRONT)
    assert world.settled() and world.service.get(DOMID, DEVICE) is None
    assert not world.xs.exists(BACK)


def test_steps_are_total():
    """Every pair of states has an answer, and none both connects and is connected."""
    for front in S:
        for back in S:
            for online in (True, False):
                step = next_step(front, back, online=online)
                assert isinstance(step, Step)
                assert not (step is Step.CONNECT and back is S.CONNECTED)
                assert online or step not in (Step.CONNECT, Step.ANNOUNCE)


KEYS = st.sampled_from(["state", "ring-ref", "event-channel", "protocol", "ring-page-order", "ring-ref0", "ring-ref1"])
VALUES = st.one_of(st.sampled_from([str(n) for n in range(9)]), st.sampled_from(["", "x86_64-abi", "junk", "-1"]), st.text(max_size=5))


@settings(max_examples=60, deadline=None)
@given(writes=st.lists(st.tuples(KEYS, VALUES), max_size=25), fail=st.sampled_from([None, "bind", "attach"]))
def test_any_sequence_of_writes(disk_file, writes, fail):
    """A guest at random: domain 0 never raises, holds at most one connection, holds one exactly while Connected or
    Closing, and a front end that then behaves is served."""
    world = World(disk_file)
    world.store.hooks.callback_failed = lambda path, token, error: pytest.fail(f"{path}: {error!r}")
    world.ops.fail = fail
    for key, value in writes:
        world.guest.write(f"{FRONT}/{key}", value)
        if world.service.get(DOMID, DEVICE) is None:
            assert world.settled()
            return                                      # state Unknown: the guest gave its disk away
        assert len(world.ops.ports) == len(world.ops.attached) <= 1
        if world.state is S.CONNECTED:
            assert world.ops.attached
        elif world.state is not S.CLOSING:
            assert world.settled()
    world.ops.fail = None
    for key in ("protocol", "ring-page-order", "ring-ref0", "ring-ref1"):
        world.guest.write(f"{FRONT}/{key}", "")
        world.guest.rm(f"{FRONT}/{key}")
    world.publish(S.CLOSED)
    world.publish(S.INITIALISING)
    world.connect()
    assert world.state is S.CONNECTED


# --- images ---------------------------------------------------------------------------------------------------------

def test_odd_sizes_count_the_last_part_of_a_sector(tmp_path):
    """Rounding down would hide the file's last bytes from the guest."""
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(1000))
    image = open_image(str(path))
    assert image.sectors == 2
    image.close()


@pytest.mark.parametrize(("make", "say"), [
    (lambda path: None, "No such file"),
    (lambda path: path.write_bytes(b""), "empty"),
    (lambda path: path.mkdir(), "directory"),
])
def test_useless_images_are_named(tmp_path, make, say):
    """The user must read which disk it is, and why not."""
    path = tmp_path / "disk.img"
    make(path)
    with pytest.raises(ImageError, match=say) as caught:
        open_image(str(path))
    assert str(path) in str(caught.value)


def test_a_directory_is_no_disk_even_read_only(tmp_path):
    """Opened read-only, a directory opens."""
    with pytest.raises(ImageError, match="neither"):
        open_image(str(tmp_path), writable=False)
