"""The command line in processes of their own that begin warm: forked from one that has imported everything.

A process that imports torch anew takes seconds; a test of one line of an error message should not.
"""

import contextlib
import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import start

ROOT = Path(__file__).parent.parent
MODULES = (
    "train",
    "sample",
    "compare",
    "grid",
    "encode",
    "interpolate",
    "likelihood",
    "import_checkpoint",
    "export_run",
)


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`python main.py ARGUMENTS`, in this directory and with this environment beside the present one."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    request = {"arguments": arguments, "cwd": str(cwd), "environment": {**os.environ, **environment}}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer: dict[str, Any] = json.loads(server.stdout.readline())
    return subprocess.CompletedProcess(list(arguments), answer["status"], answer["stdout"], answer["stderr"])


@functools.cache
def _server() -> "subprocess.Popen[str]":
    command = [sys.executable, str(Path(__file__))]
    return start(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    for module in MODULES:
        importlib.import_module(f"scorefield.commands.{module}")
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        replies.write(json.dumps(_answer(json.loads(line))) + "\n")
        replies.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _become(request, output.fileno(), errors.fileno())
        _, status = os.waitpid(child, 0)
        results: dict[str, Any] = {"status": os.waitstatus_to_exitcode(status)}
        for name, file in (("stdout", output), ("stderr", errors)):
            file.seek(0)
            results[name] = file.read().decode()
    return results


def _become(request: dict[str, Any], output: int, errors: int) -> None:
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
        if size := os.environ.get("LARGEST_FILE"):  # in bytes, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
        sys.argv = [str(ROOT / "main.py"), *request["arguments"]]
        status = importlib.import_module("scorefield.main").main(sys.argv)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
