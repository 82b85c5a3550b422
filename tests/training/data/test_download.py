"""The download, from a server on this machine's loopback that misbehaves on demand."""

import gzip
import hashlib
import importlib
import io
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from scorefield.training.data import cifar10, download, fashion_mnist, mnist
from scorefield.training.data.sources.urls import ARCHIVES, Archive

module = importlib.import_module("scorefield.training.data.sources.download")
CONTENT = np.random.default_rng(0).integers(256, size=300_000, dtype=np.uint8).tobytes()
PACKED = gzip.compress(CONTENT, mtime=0)
FILE = "MNIST/raw/train-images-idx3-ubyte"
PART = "MNIST/raw/data.gz.part"


class Server(ThreadingHTTPServer):
    """Serves `pages`; the lists say to which paths, each as often as listed, it misbehaves."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.ranges = True
        self.shift = 0  # resumes this far from the requested byte
        self.cut: list[str] = []
        self.busy: list[str] = []
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        server.requests.append((self.path, requested))
        if self.path in server.busy:
            server.busy.remove(self.path)
            return self.send_error(503)
        if self.path not in server.pages:
            return self.send_error(404)
        body = server.pages[self.path]
        start = 0
        if requested and server.ranges:
            start = int(requested.removeprefix("bytes=").removesuffix("-")) + server.shift
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        if self.path in server.cut:
            server.cut.remove(self.path)
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "WAIT", 0.0)
    monkeypatch.setattr(module, "TIMEOUT", 5.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.pages["/data.gz"] = PACKED
        yield server
        server.shutdown()
        thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def offer(monkeypatch: pytest.MonkeyPatch, *urls: str, name: str = "mnist", content: bytes = CONTENT) -> None:
    """Makes the data set one file with this content, at these addresses."""
    monkeypatch.setitem(ARCHIVES, name, (Archive(urls, {FILE: sha256(content)}),))


def only(root: Path, *names: str) -> bool:
    """Whether these are all the files below the root."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == sorted(names)


def failure(root: Path) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        download("mnist", root)
    message = str(caught.value)
    assert "\n" not in message and str(root / FILE) in message
    assert f"by hand and unpack train-images-idx3-ubyte into {(root / FILE).parent}" in message
    return message


def test_a_full_download_and_none_when_it_is_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    download("mnist")
    assert (tmp_path / FILE).read_bytes() == CONTENT and only(tmp_path, FILE)
    assert server.requests == [("/data.gz", None)]
    before = (tmp_path / FILE).stat()
    download("mnist")
    assert len(server.requests) == 1 and (tmp_path / FILE).stat().st_mtime_ns == before.st_mtime_ns


def test_a_wrong_file_is_replaced(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_bytes(CONTENT[:-1])
    download("mnist", tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_a_server_that_unpacks_by_itself(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    server.pages["/data.gz"] = CONTENT
    download("mnist", tmp_path)
    assert (tmp_path / FILE).read_bytes() == CONTENT


def begun(root: Path, content: bytes) -> None:
    (root / PART).parent.mkdir(parents=True)
    (root / PART).write_bytes(content)


def test_resumes_a_part(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    begun(tmp_path, PACKED[:100_000])
    download("mnist", tmp_path)
    assert server.requests == [("/data.gz", "bytes=100000-")]
    assert (tmp_path / FILE).read_bytes() == CONTENT and only(tmp_path, FILE)


def test_a_part_that_is_whole_needs_no_byte(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    begun(tmp_path, PACKED)
    download("mnist", tmp_path)
    assert server.requests == [("/data.gz", f"bytes={len(PACKED)}-")]
    assert (tmp_path / FILE).read_bytes() == CONTENT and only(tmp_path, FILE)


def test_a_server_that_ignores_range_starts_over(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    server.ranges = False
    begun(tmp_path, PACKED[:100_000])
    download("mnist", tmp_path)
    assert server.requests == [("/data.gz", "bytes=100000-")]
    assert (tmp_path / FILE).read_bytes() == CONTENT and only(tmp_path, FILE)


@pytest.mark.parametrize("size", [100_000, len(PACKED) + 7])
def test_a_wrong_part_is_thrown_away(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    begun(tmp_path, b"\0" * size)
    download("mnist", tmp_path)
    assert server.requests == [("/data.gz", f"bytes={size}-"), ("/data.gz", None)]
    assert (tmp_path / FILE).read_bytes() == CONTENT and only(tmp_path, FILE)


def test_a_server_that_resumes_elsewhere_starts_over(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    server.shift = 1
    begun(tmp_path, PACKED[:100_000])
    download("mnist", tmp_path)
    assert [requested for _, requested in server.requests] == ["bytes=100000-", None]
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"), content=CONTENT + b"!")
    message = failure(tmp_path)
    assert f"SHA-256 of train-images-idx3-ubyte is {sha256(CONTENT)}, expected {sha256(CONTENT + b'!')}" in message
    assert server.url("/data.gz") in message
    assert only(tmp_path) and len(server.requests) == 1


def test_damaged_gzip_leaves_nothing(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    for page in (PACKED[:-20], PACKED[:5000] + b"\0" * 90 + PACKED[5090:], PACKED[:-8] + b"\0" * 8):
        server.pages["/data.gz"] = page
        assert "the received file is damaged" in failure(tmp_path)
        assert only(tmp_path)


def test_a_cut_connection_resumes(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    server.cut = ["/data.gz"]
    server.busy = ["/data.gz"]
    download("mnist", tmp_path)
    assert [requested for _, requested in server.requests] == [None, None, f"bytes={len(PACKED) // 2}-"]
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_a_line_that_stays_cut_keeps_what_came(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, server.url("/data.gz"))
    server.cut = ["/data.gz"] * 3
    message = failure(tmp_path)
    kept = (tmp_path / PART).stat().st_size
    assert f"the connection closed after {kept} of {len(PACKED)} bytes" in message
    assert only(tmp_path, PART) and kept > len(PACKED) * 0.8
    download("mnist", tmp_path)
    assert server.requests[-1] == ("/data.gz", f"bytes={kept}-")
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_mirrors_are_tried_in_turn(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/data.gz"
    server.pages["/wrong/data.gz"] = gzip.compress(b"a login page")
    urls = [dead, server.url("/gone/data.gz"), server.url("/wrong/data.gz")]
    offer(monkeypatch, *urls)
    message = failure(tmp_path)
    for url, what in zip(urls, ("refused", "HTTP status 404", "the SHA-256"), strict=True):
        assert url in message and what in message
    assert only(tmp_path)
    offer(monkeypatch, *urls, server.url("/data.gz"))
    download("mnist", tmp_path)
    assert [path for path, _ in server.requests[2:]] == ["/gone/data.gz", "/wrong/data.gz", "/data.gz"]
    assert (tmp_path / FILE).read_bytes() == CONTENT and only(tmp_path, FILE)


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    monkeypatch.setattr(module, "WAIT", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        offer(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/data.gz")
        assert "timed out" in failure(tmp_path)


def tar(members: dict[str, bytes | str]) -> bytes:
    """A .tar.gz of files and, where a member is a `str`, of symbolic links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_tar_gives_its_expected_members_only(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = "cifar-10-batches-bin/one.bin", "cifar-10-batches-bin/two.bin"
    files = {one: sha256(b"first"), two: sha256(b"second")}
    monkeypatch.setitem(ARCHIVES, "cifar10", (Archive((server.url("/c.tar.gz"),), files),))
    root = tmp_path / "root"
    outside: dict[str, bytes | str] = {"../evil": b"out", "/tmp/evil": b"out", f"{one}/../more.bin": b"more"}
    server.pages["/c.tar.gz"] = tar({**outside, one: b"first", two: "../../secret", f"x/{two}": b"second"})
    (tmp_path / "secret").write_bytes(b"second")
    with pytest.raises(FileNotFoundError, match=f"the received file has no {two}"):
        download("cifar10", root)
    assert only(tmp_path, "secret", f"root/{one}")
    server.pages["/c.tar.gz"] = tar({two: b"wrong", one: b"first"})
    with pytest.raises(FileNotFoundError, match=r"SHA-256 of two\.bin"):
        download("cifar10", root)
    assert only(root, one)
    for damaged in (b"<html>", tar({one: b"first", two: b"second"})[:-30]):
        server.pages["/c.tar.gz"] = damaged
        with pytest.raises(FileNotFoundError, match="the received file"):
            download("cifar10", root)
    server.pages["/c.tar.gz"] = tar({**outside, two: b"second", one: b"first"})
    download("cifar10", root)
    assert (root / one).read_bytes() == b"first" and (root / two).read_bytes() == b"second"
    assert only(tmp_path, "secret", f"root/{one}", f"root/{two}")


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="named mnist, fashion_mnist, cifar10, got 'imagenet'"):
        download("imagenet", tmp_path)


@pytest.mark.parametrize(("name", "reader"), [("mnist", mnist), ("fashion_mnist", fashion_mnist), ("cifar10", cifar10)])
def test_readers_download_on_demand(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, name: str, reader: type
) -> None:
    offer(monkeypatch, server.url("/gone.gz"), name=name)
    with pytest.raises(FileNotFoundError, match="which is not there"):
        reader(tmp_path, "test")
    assert not server.requests
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        reader(tmp_path, "test", download=True)
    assert server.requests


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_real_files_have_the_listed_checksums(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.environ.get("DATA_ROOT")
    if not root or not all((Path(root) / file).is_file() for archive in ARCHIVES[name] for file in archive.files):
        pytest.skip(f"DATA_ROOT does not name a folder that holds {name}")
    monkeypatch.setattr(module, "_fetch", lambda archive, root: pytest.fail(f"{name} is not as listed"))
    download(name, root)
