"""The command line in processes of their own that begin warm: forked from one that has imported everything.

A process that imports torch anew takes seconds; a test of one line of an error message should not.
"""

import contextlib
import functools
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
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
    "likelihood.command",
    "import_checkpoint",
    "export_run",
    "check_data",
)
LATER = ("torch._dynamo", "sklearn.datasets")  # imports of a first training


class Child:
    """A command that runs, with the methods of `subprocess.Popen` that tests need."""

    def __init__(self, pid: int, folder: "tempfile.TemporaryDirectory[str]") -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._folder = folder

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _request({"poll": self.pid})
            if self.returncode is not None:
                folder = Path(self._folder.name)
                self._said = (folder / "output").read_text("utf-8"), (folder / "errors").read_text("utf-8")
                self._folder.cleanup()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Its output and its errors, when it has ended."""
        self.wait(timeout)
        return self._said


def begin(*arguments: str, cwd: Path = ROOT, **environment: str) -> Child:
    """Start `python main.py ARGUMENTS`, in this directory and with this environment beside the present one."""
    folder = tempfile.TemporaryDirectory()
    request = {"arguments": arguments, "cwd": str(cwd), "environment": {**os.environ, **environment}}
    return Child(_request({**request, "folder": folder.name}), folder)


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`python main.py ARGUMENTS` to its end."""
    child = begin(*arguments, cwd=cwd, **environment)
    output, errors = child.communicate(600)
    return subprocess.CompletedProcess(list(arguments), child.wait(), output, errors)


def ranks(*arguments: str, count: int = 2) -> list[Child]:
    """A process for each rank, with the environment that torchrun gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [begin(*arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


def _request(request: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def _server() -> "subprocess.Popen[str]":
    command = [sys.executable, str(Path(__file__))]
    return start(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    for module in (*(f"scorefield.commands.{name}" for name in MODULES), *LATER):
        importlib.import_module(module)
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        replies.write(json.dumps(_answer(json.loads(line))) + "\n")
        replies.flush()


def _answer(request: dict[str, Any]) -> int | None:
    """The number of a new process; or the status of one, None while it runs."""
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    child = os.fork()
    if child == 0:
        _become(request)
    return child


def _become(request: dict[str, Any]) -> None:
    status = 1
    try:
        for descriptor, name in ((1, "output"), (2, "errors")):
            os.dup2(os.open(Path(request["folder"], name), os.O_WRONLY | os.O_CREAT), descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if encoding := os.environ.get("PYTHONIOENCODING"):
            sys.stdout.reconfigure(encoding=encoding, errors="strict")  # type: ignore[union-attr]
        sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
        if size := os.environ.get("LARGEST_FILE"):  # in bytes, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
        sys.argv = [str(ROOT / "main.py"), *request["arguments"]]
        status = importlib.import_module("scorefield.main").main(sys.argv)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
