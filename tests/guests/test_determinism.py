"""With the virtual clock a run repeats bit for bit: same events at the same times, same memory at the end."""

import ast
import os
import pathlib
import subprocess
import sys

from c_images import example

SCRIPT = pathlib.Path(__file__).with_name("determinism_run.py")
NATIVE = pathlib.Path(__file__).with_name("determinism_native_run.py")


def run(seed: int, hash_seed: int, *words: object, script: pathlib.Path = SCRIPT) -> str:
    env = {**os.environ, "PYTHONHASHSEED": str(hash_seed),
           "PYTHONPATH": os.pathsep.join(filter(None, [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH")]))}
    return subprocess.run([sys.executable, str(script), *map(str, words), str(seed)], env=env, check=True, capture_output=True, text=True,
                          timeout=300).stdout


def quiet_and_loaded(*words: object, script: pathlib.Path = SCRIPT) -> tuple[str, str]:
    """What two processes print, the second one with another hash seed and beside busy ones."""
    quiet = run(5, 0, *words, script=script)
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        return quiet, run(5, 12345, *words, script=script)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_same_digest_in_two_processes_with_other_hash_seeds_and_load():
    """Order would depend on hashing, on the host's clock, or on what else the machine does."""
    quiet, loaded = quiet_and_loaded()
    assert quiet == loaded


def test_machine_code_runs_the_same_instructions_in_two_processes():
    """Guests in C would be interrupted at another instruction the second time, by what the host's clock or addresses say."""
    quiet, loaded = quiet_and_loaded(example("pingpong"), example("smp"), script=NATIVE)
    assert quiet == loaded
    digest, _, counts = quiet.split(maxsplit=2)
    assert int(digest, 16) and sum(n > 100_000 for n in ast.literal_eval(counts)) == 4, quiet      # the fifth is in Python


def test_digest_sees_differences():
    """The digest would be blind, and the test above could not fail: one byte written otherwise must show."""
    other = SCRIPT.read_text().replace("bytes([n]) * 4096", "bytes([n ^ 1]) * 4096").replace("main(int(sys.argv[1]))", "main(5)")
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    changed = subprocess.run([sys.executable, "-c", other], env=env, check=True, capture_output=True, text=True).stdout
    assert changed.split()[1:] == run(5, 0).split()[1:]         # the same calls at the same times
    assert changed.split()[0] != run(5, 0).split()[0]           # on other bytes
