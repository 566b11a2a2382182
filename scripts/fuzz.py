#!/usr/bin/env python3
"""Fuzzing for as long as one likes: `make fuzz`, or scripts/fuzz.py --minutes 60 [--only hostile,threads] [--seed 7].

Runs the project's own fuzzers in turn, with fresh seeds, until the time is over, and prints what was run. At the first failure it
stops, prints the fuzzer's output and the command that repeats it, and exits 1. Works on whatever build of the core the interpreter
finds: with scripts/asan_test.sh's environment, on the one with sanitizers.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"

#: name -> (test files, environment of one run with this seed, what one run is). A run takes some seconds to a minute.
FUZZERS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "hostile": (["property/test_hostile_hypercalls.py"], {"XENLIKE_EXAMPLES": "200"}, "200 histories of hostile hypercalls"),
    "machines": (["property/test_core_machines.py"], {"XENLIKE_EXAMPLES": "30"}, "30 histories for each model beside the core"),
    "threads": (["property/test_thread_stress.py"], {"XENLIKE_STRESS": "5", "XENLIKE_STRESS_SEED": "{seed}"},
                "5 programs for each stress of real threads"),
    "x86": (["property/test_x86_fuzz.py"], {"XENLIKE_X86_MACHINES": "20000", "XENLIKE_X86_SEED": "{seed}"},
            "20,000 hostile bare machines, each run three ways"),
    "pv": (["unit/test_pv_fuzz.py"], {"XENLIKE_PV_PROGRAMS": "2000", "XENLIKE_PV_SEED": "{seed}"}, "2,000 hostile PV kernels of machine code"),
    "bt": (["property/test_bt_fuzz.py"], {"XENLIKE_BT_MACHINES": "10000", "XENLIKE_BT_PROGRAMS": "100", "XENLIKE_BT_STRESS": "15",
                                          "XENLIKE_BT_SEED": "{seed}"},
           "10,000 hostile bare machines, 500 PV kernels and 15 s of such on threads, in the translator"),
    "store": (["property/test_store_fuzz.py", "property/test_store_machine.py"], {}, "xenstore messages and histories"),
    "pvthreads": (["property/test_pv_stress.py"], {"XENLIKE_PV_STRESS": "30", "XENLIKE_PV_STRESS_SEED": "{seed}"},
                  "30 s of hostile PV kernels on real threads"),
    "images": (["property/test_loader_fuzz.py"], {"XENLIKE_EXAMPLES": "500"}, "3,500 broken kernel images"),
    "config": (["property/test_xlcfg_roundtrip.py"], {}, "domain configurations"),
}


def command(name: str, seed: int) -> tuple[list[str], dict[str, str]]:
    """What runs one fuzzer with one seed: the command and what it adds to the environment."""
    files, extra, _ = FUZZERS[name]
    args = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}",
            *(str(TESTS / file) for file in files)]
    return args, {key: value.format(seed=seed) for key, value in extra.items()}


def run(name: str, seed: int) -> tuple[bool, str, int]:
    """(passed, output, how many tests passed)"""
    args, extra = command(name, seed)
    done = subprocess.run(args, cwd=ROOT, env={**os.environ, **extra}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed = re.search(r"(\d+) passed", done.stdout)
    return done.returncode == 0, done.stdout, int(passed[1]) if passed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5, help="for how long (default 5); the run under way is finished")
    parser.add_argument("--only", default=",".join(FUZZERS), help="which, with commas between: " + ", ".join(FUZZERS))
    parser.add_argument("--seed", type=int, help="one run of each with this seed, to repeat a failure")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in FUZZERS]:
        parser.error(f"no such fuzzer: {', '.join(unknown)}; there are {', '.join(FUZZERS)}")

    runs = dict.fromkeys(names, 0)
    started = time.monotonic()
    while options.seed is None and time.monotonic() < started + 60 * options.minutes or not all(runs.values()):
        name = min(names, key=runs.__getitem__)
        seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
        at = time.monotonic()
        passed, output, tests = run(name, seed)
        runs[name] += 1
        print(f"{time.monotonic() - started:7.0f} s  {name:9} seed {seed:<10} {tests:3} tests in {time.monotonic() - at:.0f} s",
              flush=True)
        if not passed:
            print(output)
            print(f"FAILED. To repeat it:\n    scripts/fuzz.py --only {name} --seed {seed}")
            return 1
    for name, count in runs.items():
        print(f"{name:9} {count:4} runs of {FUZZERS[name][2]}: no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
