"""The pytest plugin, as another project's tests see it: in a pytest of their own."""

from __future__ import annotations

import os
import re

import pytest
from commands import NO_CORE, PLUGIN, ROOT

pytest_plugins = ["pytester"]

GUESTS = '''
import pytest
from guest_sdk import Guest

class Hello(Guest):
    async def main(self):
        self.console.print("hello from", self.domid)
        await self.sleep(3600)

class Crash(Guest):
    async def main(self):
        self.console.print("so far so good")
        raise ValueError("oops")

class Waits(Guest):
    async def main(self):
        self.console.print("got", await self.console.readline())
'''


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Runs pytest with our plugin on a test file: ``run(text, *arguments)`` gives pytester's result."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(text: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=GUESTS + text)
        return pytester.runpytest_subprocess(*PLUGIN, "-p", "no:cacheprovider", "--strict-markers", *arguments)

    return run


def sections(output: str) -> dict[str, str]:
    """The report's own sections: title -> text."""
    parts = re.split(r"^-+ xenlike: (.*?) -+$", output, flags=re.M)
    return {title: re.split(r"^[-=]+ .* [-=]+$", text, maxsplit=1, flags=re.M)[0].strip("\n")
            for title, text in zip(parts[1::2], parts[2::2])}


def test_hosts_are_virtual_and_closed(run):
    """Tests would wait in real time, run on one shared host, or leave hosts open."""
    result = run('''
hosts = []

@pytest.fixture(autouse=True)
def earlier_hosts_are_closed():
    assert all(host.closed for host in hosts)

def test_example(xen):
    hosts.append(xen.host)
    assert xen.clock == xen.host.clock == "virtual"
    dom = xen.create(Hello, memory="16M")
    assert dom.config.memory == 16 << 20
    assert dom.console.expect("hello")
    assert dom.wait().reason == "poweroff"
    assert xen.host.now() > 3600 * 10**9

def test_run(xen):
    hosts.append(xen.host)
    dom = xen.run(Hello, timeout=7200)
    assert dom.domid == 1 and dom.console.text == "hello from 1\\\\n"
    from xenlike import WaitTimeout
    with pytest.raises(WaitTimeout):
        xen.run(Hello, timeout=1)

def test_load(xen, tmp_path):
    (tmp_path / "a.py").write_text("from guest_sdk import Guest\\\\nclass A(Guest):\\\\n"
                                   "    async def main(self): self.console.print(self.args)")
    (tmp_path / "a.cfg").write_text('name = "a"\\\\nkernel = "a.py:A"\\\\nextra = "one"')
    dom = xen.load(tmp_path / "a.cfg", 'extra="two"')
    assert dom.wait().reason == "poweroff" and dom.console.text == "two\\\\n"
    assert xen.domains == [dom]

def test_input(xen):
    dom = xen.create(Waits)
    dom.console.send("it\\\\n")
    assert dom.wait().reason == "poweroff" and dom.console.lines == ["got it"]
'''.replace("\\\\n", "\\n"), "--xenlike-seed=0x10")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["xenlike: clock virtual, seed 16"])


FAILING = '''
def test_fails(xen):
    xen.create(Hello).console.expect("hello")
    dom = xen.create(Crash, name="second")
    assert dom.wait().reason == "poweroff"

def test_stalls(xen):
    xen.create(Waits).wait()
'''


def test_what_a_failure_shows(run):
    """A failure in CI could not be understood from its log, nor repeated."""
    result = run(FAILING)
    result.assert_outcomes(failed=2)
    output = result.stdout.str()
    seed = re.search(r"^xenlike: clock virtual, seed (\d+)$", output, re.M)[1]
    first, second = re.split(r"^_+ test_stalls _+$", output, flags=re.M)

    shown = sections(first)
    assert shown["console of hello (domain 1, running)"] == "hello from 1"
    assert shown["console of second (domain 2, crash)"] == "so far so good"
    crash = shown["crash of second (domain 2, crash)"]
    assert crash.startswith("vcpu 0: ValueError: oops\nTraceback") and 'raise ValueError("oops")' in crash
    events = shown["last trace events (time in ns, domain and vCPU, event)"].splitlines()
    assert any(re.match(r" *\d+ d2v0 +crash ", line) for line in events)
    assert shown["what waits"].startswith("domain 1 (hello) vcpu 0: ")
    assert shown["repeat it"] == f"clock virtual, seed {seed}\npytest test_it.py::test_fails --xenlike-seed={seed}"

    assert "Stalled: all vCPUs are blocked and no timer is set" in second
    assert "task 'main' at test_it.py:16 in main" in sections(second)["what waits"]

    again = run(FAILING, *shown["repeat it"].split()[-2:])
    again.assert_outcomes(failed=1)
    assert sections(again.stdout.str()) == shown, "the line that repeats a failure gave another one"


def test_seeds_differ_from_run_to_run(run):
    """A defect that only one seed in many shows would never be found."""
    seeds = {re.search(r"seed (\d+)", run("def test(): pass").stdout.str())[1] for _ in range(2)}
    assert len(seeds) == 2


def test_a_crash_that_nobody_looked_at(run):
    """A test would pass although its guest crashed; or a test about a crash could not pass."""
    result = run('''
def test_unnoticed(xen):
    dom = xen.run(Crash)
    assert dom.ended and dom.console.text

def test_wait(xen):
    assert xen.create(Crash).wait().reason == "crash"

def test_result(xen):
    dom = xen.run(Crash)
    assert dom.result.crash_reason == "vcpu 0: ValueError: oops"

def test_fails_itself(xen):
    xen.run(Crash)
    assert False
''')
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_unnoticed*", "a guest crashed, and the test did not look *",
                                 "  domain 1 (crash): crash: vcpu 0: ValueError: oops", "*xenlike: console of crash (domain 1, crash)*"])
    assert result.stdout.str().count("ERROR at teardown") == 1


def test_marker_and_options(run):
    """Arguments would not reach the host, or a mistake in them would not be told."""
    text = '''
@pytest.mark.xenlike(clock="real", seed=3)
class TestReal:
    def test_marked(self, xen):
        assert (xen.host.clock, xen.host.seed, xen.seed) == ("real", 3, 3)
        dom = xen.create(Hello)
        assert dom.console.expect("hello")

    @pytest.mark.xenlike(seed=4, memory="64M")
    def test_nearest_counts(self, xen):
        assert (xen.host.clock, xen.host.seed) == ("real", 4)
        assert xen.host.usage()["frames_total"] <= 64 * 256

def test_option(xen, request):
    assert xen.host.clock == request.config.getoption("--xenlike-clock") == "real"

@pytest.mark.xenlike("real")
def test_positional(xen):
    pass

@pytest.mark.xenlike(clok="real")
def test_slip(xen):
    pass
'''
    result = run(text, "--xenlike-clock=real", "--xenlike-seed=9")
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["*takes keywords only, such as clock=\"real\", not 'real'", "*unexpected keyword argument 'clok'*"])
    assert run("", "--xenlike-clock=lunar").ret == pytest.ExitCode.USAGE_ERROR


def test_a_real_clocks_failure_is_reported_and_repeated_with_its_clock(run):
    """The line to repeat a failure would run it under another clock."""
    result = run("def test_fails(xen):\n    xen.create(Hello).console.expect('hello')\n    assert False", "--xenlike-clock=real",
                 "--xenlike-seed=5")
    shown = sections(result.stdout.str())
    assert shown["console of hello (domain 1, running)"] == "hello from 1"
    assert shown["repeat it"].splitlines()[1] == "pytest test_it.py::test_fails --xenlike-seed=5 --xenlike-clock=real"


def test_restarted_domains_count_too(run):
    """A crash after a reboot would go unnoticed."""
    result = run('''
class Twice(Guest):
    async def main(self):
        if self.domid == 1:
            self.shutdown(1)
            await self.halt()
        raise ValueError("second boot")

def test_it(xen):
    xen.run(Twice, on_reboot="restart")
    assert xen.host.wait_until(lambda: all(d.ended for d in xen.domains))
    assert len(xen.domains) == 2
''')
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["  domain 2 (twice): crash: vcpu 0: ValueError: second boot"])


def test_pytest_lives_without_the_core(run, pytester):
    """Where xenlike is installed without its core, every pytest of that environment would break."""
    pytester.makepyfile(sitecustomize=NO_CORE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(pytester.path), os.environ["PYTHONPATH"])))
        pytester.makepyfile(test_it="def test_other(): pass\ndef test_xen(xen): pass")
        result = pytester.runpytest_subprocess(*PLUGIN, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["xenlike's C core is not built*", "*test_xen*"])


def test_xen_is_documented(run):
    """`pytest --fixtures` and `--markers` would not tell of it."""
    result = run("", "--fixtures", "--markers", "-q")
    assert "@pytest.mark.xenlike(clock=, seed=, memory=, ...)" in result.stdout.str()
    assert "xen.create(GuestClass" in run("", "--fixtures").stdout.str()
