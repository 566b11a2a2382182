"""``xenlike bt GUEST``: runs a guest of machine code by translation, then shows its hottest code and what became of it.

Owns: the command. Called by: ``cli``. The guest's console goes to stderr, so that stdout is the listing alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xenlike.cli import Failure

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    add = parser.add_argument
    add("words", nargs="*", metavar="CFG|IMAGE|key=value", help="a configuration or kernel image, and settings, as for `xenlike run`")
    add("--example", action="store_true", help="show the classic example instead: cli and mov cr3 in a routine, block by block")
    add("--time", type=float, default=10.0, metavar="SECONDS", help="run so long at most, by the guest's clock (default: 10)")
    add("--instructions", type=_count, metavar="N", help="run until about so many instructions have retired")
    add("--clock", choices=("real", "virtual"), default="virtual", help="virtual (default): the same run each time")
    add("--seed", type=_count, default=0, metavar="N", help="of everything random on the host (default: 0)")
    add("--vcpu", type=_count, default=0, metavar="N", help="whose translator (default: 0)")
    add("--top", type=_count, default=10, metavar="N", help="show so many blocks (default: 10)")
    add("--at", type=_count, metavar="ADDRESS", help="show the blocks that have this guest address")
    add("--cold", action="store_true", help="cold code too, in the terminal")
    add("--html", metavar="FILE", help="write one page instead")
    add("-q", "--quiet", action="store_true", help="not the guest's console")


def _count(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return value


def run(args: argparse.Namespace) -> int:
    """Does it; returns the exit status. Raises ConfigError, OSError, Failure."""
    try:
        import capstone  # noqa: F401
    except ImportError:
        raise Failure("xenlike bt needs capstone: pip install capstone") from None
    if args.example:
        return _example(args)
    from xenlike.cli_run import _SETTING
    files = [word for word in args.words if not _SETTING.match(word)]
    if len(files) != 1:
        args.usage_error("name one configuration or image, or --example")
    return _guest(args, files[0], [word for word in args.words if _SETTING.match(word)])


def _guest(args: argparse.Namespace, file: str, settings: list[str]) -> int:
    from xenlike.btview import read_translation, render_html, render_text
    from xenlike.engine import ffi, lib
    from xenlike.host import Host
    from xenlike.lane import Stalled
    from xenlike.loaders.image import looks_like_image
    from xenlike.toolstack import image_config, load_config

    stay = [f'on_{what}="preserve"' for what in ("poweroff", "reboot", "crash", "watchdog")]      # so that the translator is there afterwards
    config, _ = (image_config if looks_like_image(file) else load_config)(file, [*settings, *stay], seed=args.seed)
    with _options(lib.XL_BT_PROFILE), Host(memory=(256 << 20) + max(config.maxmem, 1 << 29), clock=args.clock, seed=args.seed, threaded=False, engine="bt") as host:
        if host.engine != "bt":
            raise Failure("no binary translation on this host")
        domain = host.create(config)
        if not args.quiet:
            domain.console.log.listen(lambda data: (sys.stderr.buffer.write(data), sys.stderr.flush()))
        vcpu = lib.xl_vcpu(host.c, domain.domid, args.vcpu)
        if vcpu == ffi.NULL:
            raise Failure(f"{config.name} has no vCPU {args.vcpu}")
        enough = _enough(args.instructions, vcpu)
        try:
            host.wait_until(lambda: domain.ended or enough(), timeout=args.time)
        except Stalled:
            pass                        # it waits for ever: what it did is there
        if not domain.ended:
            domain.pause()
        translator = lib.xl_bt_of_vcpu(vcpu)
        if translator == ffi.NULL:
            raise Failure(f"{config.name}, vCPU {args.vcpu}, has no translator: it is no guest of machine code, or was never started")
        seen = read_translation(translator, f"{Path(file).name}: vCPU {args.vcpu}")
    blocks = seen.at(args.at) if args.at is not None else seen.hottest(args.top)
    if not blocks:
        raise Failure(f"no block has guest address {args.at:#x}" if args.at is not None else "nothing was translated")
    if args.html:
        Path(args.html).write_text(render_html(seen, blocks), encoding="utf-8")
        print(f"wrote {args.html}: {len(blocks)} of {len(seen.blocks)} blocks")
    else:
        sys.stdout.write(render_text(seen, blocks, colour=_colour(), cold=args.cold))
    return 0


def _enough(instructions: int | None, vcpu: Any) -> Callable[[], bool]:
    """Whether that many have retired, asked between two steps of the host."""
    from xenlike.engine import ffi, lib
    state = ffi.new("struct xl_cpu_state *")
    return lambda: instructions is not None and lib.xl_vcpu_state(vcpu, state) == 0 and state.retired >= instructions


def _example(args: argparse.Namespace) -> int:
    from xenlike.btview import render_block, render_html
    from xenlike.btview.example import run_example

    colour = _colour()
    last = None
    for step in run_example():
        last = step
        if args.html:
            continue
        news = [f"block {b.number} was made" for b in step.made] + [f"block {a} was linked to block {b}" for a, b in step.linked]
        print(f"after {step.retired} instruction{'s' * (step.retired != 1)}, at {step.rip:#x}{', ' + step.ended if step.ended else ''}: "
              f"{'; '.join(news) or 'nothing new'}")
        for block in step.made:
            print("\n" + render_block(block, colour=colour, cold=args.cold) + "\n")
    assert last is not None
    if args.html:
        Path(args.html).write_text(render_html(last.translation, last.translation.hottest()), encoding="utf-8")
        print(f"wrote {args.html}: {len(last.translation.blocks)} blocks")
        return 0
    s = last.translation.stats
    print(f"\nin the end: {s['blocks']} blocks, {s['interpreted']} of {last.retired} instructions interpreted, {s['exits']} returns to the loop. "
          + ", ".join(f"block {b.number} begun {b.hits} times" for b in sorted(last.translation.blocks, key=lambda b: b.number)))
    return 0


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


@contextmanager
def _options(more: int) -> Iterator[None]:
    """The translator's options come from the environment (``Host``): these too, for a host made meanwhile."""
    before = os.environ.get("XENLIKE_BT_OPTIONS")
    os.environ["XENLIKE_BT_OPTIONS"] = str(int(before or "0", 0) | more)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XENLIKE_BT_OPTIONS"]
        else:
            os.environ["XENLIKE_BT_OPTIONS"] = before
