"""The command line: one mode, one working directory.

- python main.py --mode=train --config=digits:vp --workdir=runs/vp
- python main.py --mode=sample --workdir=runs/vp --num=64 --solver=dpm --steps=20 --seed=0
- python main.py --mode=import --from=ddim ckpt.pth --workdir=runs/ddim
- python main.py --mode=compare --workdir=runs/vp --solver=ddim --solver=unipc --steps=10 --steps=20

`python main.py --help` lists all modes and options. An installed copy has the same command as `scorefield`.
"""

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status, see `commands.command_line.run`."""
    try:
        from scorefield.commands.command_line import run

        return run(list(arguments or sys.argv))
    except ModuleNotFoundError as error:
        command = f"{sys.executable} -m pip install -e {os.path.dirname(os.path.abspath(__file__))}"
        print(f"error: the Python package {error.name} is not installed: run `{command}`", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # not the folder of this file, whose folders are imported as scorefield.FOLDER
    sys.exit(main())
