"""Plants 40 faults in the code, one at a time, and runs the tests on each: they must find every one.

    python tests/faults.py               all of them, in a copy of this clone: some 20 minutes on two cores
    python tests/faults.py --only=7,12

A fault changes a sign, an operator, a comparison or a number in a line, or takes alpha for sigma. `faults.txt` lists
them: the file, a text that occurs once in it, and the wrong text. The tests of the same folder run first.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """A text that occurs once in a file, and the wrong one in its place."""

    file: str
    old: str
    new: str


ROOT = Path(__file__).parent.parent
BLOCKS = Path(__file__).with_suffix(".txt").read_text().strip().split("\n\n")
FAULTS = [Fault(*block.split("\n")) for block in BLOCKS]


def plant(root: Path, fault: Fault) -> None:
    """Change the line. Its old text must occur once in the file."""
    file = root / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"expected {fault.old!r} once in {fault.file}, found it {text.count(fault.old)} times")
    file.write_text(text.replace(fault.old, fault.new))


def first_failure(root: Path, fault: Fault) -> str | None:
    """The first test that fails with the fault planted, or None."""
    environment = {**os.environ, "PYTHONPATH": str(root.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    folder = Path("tests", fault.file).parent
    while not (root / folder).is_dir():
        folder = folder.parent
    for arguments in ([str(folder)], [f"--ignore={folder}", "tests"]):
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--durations=0", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 5):
            failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return failed[0][:110] if failed else done.stdout[-300:]
    return None


def main() -> int:
    """Plant, test, report; 1 if a fault was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of faults, as 7,12")
    only = parser.parse_args().only
    numbers = [int(n) for n in only.split(",")] if only else range(1, len(FAULTS) + 1)
    missed = []
    for number in numbers:
        fault, began = FAULTS[number - 1], time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            root = Path(place, "scorefield")
            files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
            for name in files.decode().split("\0")[:-1]:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
            plant(root, fault)
            found = first_failure(root, fault)
        missed += [number] if found is None else []
        seconds = time.monotonic() - began
        print(f"{number:2} {fault.file}: {fault.old} -> {fault.new}", flush=True)
        print(f"   {found or 'MISSED'} ({seconds:.0f} s)", flush=True)
    print(f"{len(list(numbers)) - len(missed)} found, {len(missed)} missed: {missed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
