"""``xenlike bt GUEST``: runs a guest of machine code by translation, then shows its hottest code and what became of it.

Owns: the command. Called by: ``cli``. The guest's console goes to stderr, so that stdout is the listing alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xenlike.cli import Failure
from xenlike.cli_words import check_environment, common_arguments, count, load, seconds, split

if TYPE_CHECKING:
    from xenlike.btview import Translation
    from xenlike.domain import Domain
    from xenlike.host import Host

__all__ = ["arguments", "run"]

_ENOUGH = 100_000_000       # instructions: a second or two, and a guest that waits by spinning ends
_STEP = 20_000              # ns between two looks at what has retired
_NARROWEST, _WIDEST = 60, 1000
_TOP, _TOP_OF_PAGE = 10, 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    common_arguments(parser, clock="virtual", quiet="neither warnings nor the guest's console",
                     words="a configuration or kernel image, and settings, as for `xenlike run`", clock_help="virtual (default): the same run each time")
    add = parser.add_argument
    add("--example", action="store_true",
        help="show the classic example instead: cli and mov cr3 in a routine, made, run, chained, overwritten")
    add("--time", type=seconds, default=10.0, metavar="SECONDS", help="run so long at most, by the guest's clock (default: 10)")
    add("--instructions", type=count, default=_ENOUGH, metavar="N",
        help=f"run until about so many have retired, 0: as many as may be (default: {_ENOUGH:,})")
    add("--vcpu", type=count, default=0, metavar="N", help="whose translator (default: 0)")
    add("--top", type=count, metavar="N", help="show so many blocks, the hottest (default: 10; of a page 40)")
    add("--at", metavar="ADDRESS|SYMBOL", help="show the blocks that have this guest address")
    add("--cold", action="store_true", help="in the terminal, the stubs too: code that is reached rarely")
    add("--html", metavar="FILE", help="write one page instead; -: to stdout")
    add("--width", type=count, metavar="COLUMNS", help="of the text (default: the terminal's, else 140)")


def run(args: argparse.Namespace) -> int:
    """Does it; returns the exit status. Raises ConfigError, OSError, Failure."""
    files, settings = split(args.words)
    if len(files) != (0 if args.example else 1):
        args.usage_error("--example takes no image" if args.example else "name one configuration or image, or --example")
    if args.top == 0 or args.time == 0:
        args.usage_error(f"--{'top' if args.top == 0 else 'time'} 0 would show nothing")
    if args.html == "":
        args.usage_error("--html needs the name of a file")
    if args.html not in (None, "-"):
        page = Path(args.html).absolute()
        if page.is_dir() or not page.parent.is_dir():
            raise Failure(f"--html {args.html}: {'is a folder' if page.is_dir() else f'there is no folder {Path(args.html).parent}'}")
    check_environment()
    try:
        import capstone  # noqa: F401
    except ImportError:
        raise Failure("xenlike bt needs capstone: pip install capstone") from None
    if why := _unavailable():
        raise Failure(f"this host has no binary translator, there is nothing to show: {why}")
    return _example(args) if args.example else _guest(args, files[0], settings)


def _unavailable() -> str:
    """Why there is no translator here, or nothing."""
    from xenlike.engine import ffi, lib

    why = lib.xl_bt_unavailable()
    return "" if why == ffi.NULL else ffi.string(why).decode()


def _guest(args: argparse.Namespace, file: str, settings: list[str]) -> int:
    from xenlike.btview import Symbols, read_translation
    from xenlike.engine import ffi, lib
    from xenlike.host import Host
    from xenlike.translation import more_options

    stay = [f'on_{what}="preserve"' for what in ("poweroff", "reboot", "crash", "watchdog")]      # so that there is a translator afterwards
    config = load(file, [*settings, *stay], seed=args.seed, quiet=args.quiet)
    if args.vcpu >= config.maxvcpus:
        raise Failure(f"{config.name} has no vCPU {args.vcpu}: it has {config.maxvcpus}")
    symbols = Symbols.of_file(config.kernel.path) if config.kernel else Symbols()
    at = None if args.at is None else _address(args.at, symbols)
    memory = (256 << 20) + max(config.maxmem, 1 << 29)
    with more_options(lib.XL_BT_PROFILE), Host(memory=memory, clock=args.clock, seed=args.seed, threaded=False, engine="bt") as host:
        domain = host.create(config)
        if not args.quiet:
            domain.console.log.listen(lambda data: (sys.stderr.buffer.write(data), sys.stderr.flush()))
        vcpu = lib.xl_vcpu(host.c, domain.domid, args.vcpu)
        ended = _drive(args, host, domain)
        translator = lib.xl_bt_of_vcpu(vcpu)
        if translator == ffi.NULL:
            raise Failure(f"{config.name}, vCPU {args.vcpu}, has no translator: it is no guest of machine code, or was never started")
        retired = _retired(vcpu)
        top = args.top or (None if at is not None else _TOP_OF_PAGE if args.html else _TOP)
        title = f"{Path(file).name}: vCPU {args.vcpu}"
        seen = read_translation(translator, title, top=top, at=at, symbols=symbols, retired=retired, ended=ended)
    if not seen.total:
        raise Failure(f"{config.name}: nothing was translated: all {retired:,} instructions of vCPU {args.vcpu} were interpreted"
                      if retired else f"{config.name}: vCPU {args.vcpu} has executed nothing: {ended}")
    if not seen.blocks:
        raise Failure(f"no block has guest address {args.at}: it was not executed, or interpreted")
    _show(args, seen)
    return 0


def _address(text: str, symbols: Any) -> int:
    """The address that the user named."""
    try:
        return int(text, 0)
    except ValueError:
        found = symbols.address(text)
    if found is None:
        raise Failure(f"--at {text}: the image has no such symbol, and it is no number")
    return int(found)


def _show(args: argparse.Namespace, seen: "Translation") -> None:
    """Writes what was seen, as the user wants it."""
    from xenlike.btview import render_html, render_text

    if args.html == "-":
        sys.stdout.write(render_html(seen, seen.blocks))
    elif args.html:
        Path(args.html).write_text(render_html(seen, seen.blocks), encoding="utf-8")
        print(f"wrote {args.html}: {len(seen.blocks)} of {seen.total} blocks")
    else:
        sys.stdout.write(render_text(seen, seen.blocks, colour=_colour(), cold=args.cold, width=_width(args)))


def _drive(args: argparse.Namespace, host: "Host", domain: "Domain") -> str:
    """Runs the guest until it or its limits end. Returns how, in words."""
    from xenlike.lane import Stalled

    until = host.now() + round(args.time * 1e9)
    how = f"{args.time:g} s have passed"
    while host.now() < until and not domain.ended:
        left = max(args.instructions - domain.statistics().counters["instructions"], 0) if args.instructions else until - host.now()
        if not left:
            how = f"{args.instructions:,} instructions have retired"
            break
        try:                            # an instruction takes a nanosecond, on the virtual clock
            host.wait_until(lambda: domain.ended, timeout=min(max(left, _STEP), until - host.now()) / 1e9)
        except Stalled:                 # it waits for ever: what it did is there
            how = "it waits for something that cannot come"
            break
    now = host.now() / 1e9
    at = f"at {now:.3f} s" if now >= 1 else f"at {now * 1e3:.3f} ms"
    if domain.ended:
        return f"ended by {domain.result.reason} {at}"
    domain.pause()
    return f"stopped {at}: {how}"


def _retired(vcpu: Any) -> int:
    """Instructions of a vCPU; 0 if it does not say."""
    from xenlike.engine import ffi, lib

    state = ffi.new("struct xl_cpu_state *")
    return int(state.retired) if lib.xl_vcpu_state(vcpu, state) == 0 else 0


def _example(args: argparse.Namespace) -> int:
    from xenlike.btview import render_block
    from xenlike.btview.example import ABOUT, SOURCE, run_example, told

    steps = list(run_example())
    if args.html:
        _show(args, told(steps))
        return 0
    colour, width = _colour(), _width(args)
    print("\n".join(textwrap.wrap(ABOUT, width)) + f"\n\n{textwrap.indent(SOURCE, '    ')}")
    for step in steps:
        print("\n".join(textwrap.wrap(step.text(), width)))
        for a, b in step.linked:
            if a not in [block.number for block in step.made]:
                print("\n".join(f"  block {a}: +{line.at:03x}  {line.text}" for line in step.jumps(a, b)))
        for block in step.made:
            print("\n" + render_block(block, colour=colour, cold=args.cold, width=width))
        print()
    s = step.translation.stats
    begun = [f"block {b.number} was begun {b.hits} time{'s' * (b.hits != 1)}" for b in sorted(step.translation.blocks, key=lambda b: b.number)]
    text = (f"In the end: {s['blocks']} blocks were made; {s['interpreted']} of {step.retired} instructions were interpreted; "
            f"{s['exits']} returns to the loop. {', '.join(begun).capitalize()}.")
    print("\n".join(textwrap.wrap(text, width)))
    return 0


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _width(args: argparse.Namespace) -> int:
    """Columns: what was said, the terminal's, or enough."""
    from xenlike.btview.text import DEFAULT_WIDTH

    return min(max(args.width or shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns, _NARROWEST), _WIDEST)
