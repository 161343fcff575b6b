"""URLs: what a header costs over a web server that counts, and what each failure is called."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import safetensors.numpy

from ckpt_tools import remote
from ckpt_tools.analysis.digest import digest
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, MissingDependency, NotFound, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.remote import BLOCK, RemoteFolder, RemoteSource, open_url
from ckpt_tools.sources import FileSource, Folder

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@dataclass
class Server:
    """A web server over a folder: it counts, and misbehaves as it is told."""

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    ranges: bool = True
    lengths: bool = True
    status: int = 0
    cut: bool = False
    silent: threading.Event | None = None


class Handler(BaseHTTPRequestHandler):
    """One request of a `Server`."""

    protocol_version = "HTTP/1.1"
    owner: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        server = self.owner
        server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if server.silent is not None:
            server.silent.wait(20)
            return
        if server.status:
            return self.refuse(server.status)
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        file = server.folder / path.lstrip("/")
        if not file.is_file():
            return self.refuse(404)
        size = file.stat().st_size
        start, stop = 0, size
        wanted = self.headers.get("Range")
        if wanted and server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            self.send_response(200)
        if server.lengths:
            self.send_header("Content-Length", str(stop - start))
        else:
            self.close_connection = True
        self.end_headers()
        if not body:
            return None
        if server.cut:
            stop = start + (stop - start) // 2
            self.close_connection = True
        server.sent += stop - start  # before the client has them, who may look at once
        try:
            with file.open("rb") as opened:
                opened.seek(start)
                self.wfile.write(opened.read(stop - start))
        except OSError:
            server.sent -= stop - start
            self.close_connection = True
        return None

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "www"
    folder.mkdir()
    made = Server(folder)
    handler = type("Owned", (Handler,), {"owner": made})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listening.daemon_threads = True
    made.url = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    yield made
    if made.silent is not None:
        made.silent.set()
    listening.shutdown()
    thread.join()
    listening.server_close()


BIG = 50_000_000
"""What the larger files hold, in bytes."""
CHEAP = 200_000
"""What describing one of them may cost."""


def big_safetensors(file: Path, **more: np.ndarray) -> dict[str, np.ndarray]:
    tensors = {f"layers.{i}.weight": np.full((1250, 1000), i, dtype="<f4") for i in range(10)} | more
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    assert file.stat().st_size >= BIG
    return tensors


# --- what a header costs


def test_a_safetensors_header_is_cheap(server: Server) -> None:
    tensors = big_safetensors(server.folder / "model.safetensors")
    checkpoint = open_checkpoint(f"{server.url}/model.safetensors")
    assert {t.name: t.shape for t in checkpoint.state_dicts[0].tensors} == {n: t.shape for n, t in tensors.items()}
    assert (checkpoint.path, checkpoint.size > BIG) == (f"{server.url}/model.safetensors", True)
    assert server.requests == ["HEAD /model.safetensors", f"GET /model.safetensors bytes=0-{BLOCK - 1}"]
    assert server.sent == BLOCK


def test_a_torch_archive_is_cheap(server: Server, torch: ModuleType) -> None:
    """The end for its directory, the beginning for its pickle; no local header of a storage."""
    state = {f"layers.{i}.weight": torch.full((1250, 50), float(i)) for i in range(200)}
    torch.save({"model": state, "epoch": 3}, server.folder / "model.pt")
    assert (server.folder / "model.pt").stat().st_size >= BIG
    checkpoint = open_checkpoint(f"{server.url}/model.pt")
    assert checkpoint.format == "torch_zip"
    (state_dict,) = checkpoint.state_dicts
    assert [t.name for t in state_dict.tensors] == list(state)
    assert server.sent < CHEAP / 2
    assert len(server.requests) <= 6
    before = server.sent
    assert read_bytes(state_dict["layers.7.weight"]) == np.full(62_500, 7, "<f4").tobytes()
    assert server.sent - before < 250_000 + 2 * BLOCK


def test_sharded_weights_are_cheap(server: Server) -> None:
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    weight_map = {}
    for i, name in enumerate(names):
        big_safetensors(server.folder / name, **{f"own.{i}": np.arange(3, dtype="<i8")})
        weight_map[f"own.{i}"] = name
    weight_map |= {f"layers.{i}.weight": names[i % 3] for i in range(10)}
    (server.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(f"{server.url}/model.safetensors.index.json")
    assert (checkpoint.format, len(checkpoint.parts)) == ("sharded", 3)
    assert read_bytes(checkpoint.state_dicts[0]["own.1"]) == np.arange(3, dtype="<i8").tobytes()
    assert server.sent < CHEAP
    assert len(server.requests) <= 10


def test_a_missing_shard_over_the_web(server: Server) -> None:
    (server.folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.bin"}}')
    with pytest.raises(CorruptFile, match=r"1 of 1 shard is missing \(there is no such file \(the server answers 404"):
        open_checkpoint(f"{server.url}/model.safetensors.index.json")


def test_shards_stay_on_their_server(server: Server) -> None:
    index = {"weight_map": {"a": "http://127.0.0.1:1/x", "b": "what?is=this", "c": "a b#c"}}
    (server.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match="3 of 3 shards are missing"):
        open_checkpoint(f"{server.url}/model.safetensors.index.json")
    heads = [unquote(request) for request in server.requests if request.startswith("HEAD")]
    assert heads[1:] == ["HEAD /http://127.0.0.1:1/x", "HEAD /what?is=this", "HEAD /a b#c"]


# --- reading


def noise(count: int) -> bytes:
    return np.random.default_rng(5).bytes(count)


def source(server: Server, data: bytes) -> RemoteSource:
    (server.folder / "data").write_bytes(data)
    made = open_url(f"{server.url}/data")
    assert isinstance(made, RemoteSource)
    server.requests.clear()
    return made


def test_any_range_is_the_files(server: Server) -> None:
    data = noise(3 * BLOCK + 100)
    made = source(server, data)
    assert made.size == len(data)
    for offset, count in [(0, 10), (BLOCK - 5, 10), (5, 2 * BLOCK), (len(data) - 7, 100), (len(data), 5), (9, 0)]:
        assert made.peek(offset, count) == data[offset : offset + count]
    assert made.read(0, len(data)) == data
    with pytest.raises(CorruptFile):
        made.read(len(data) - 1, 2)


def test_a_block_is_fetched_once(server: Server) -> None:
    made = source(server, noise(3 * BLOCK))
    for offset in (0, 100, BLOCK - 1, BLOCK, 5):
        made.peek(offset, 1)
    made.peek(0, 3 * BLOCK)
    assert server.requests == [
        f"GET /data bytes=0-{BLOCK - 1}",
        f"GET /data bytes={BLOCK}-{2 * BLOCK - 1}",
        f"GET /data bytes={2 * BLOCK}-{3 * BLOCK - 1}",
    ]


def test_few_blocks_are_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_BLOCKS", 2)
    data = noise(4 * BLOCK)
    made = source(server, data)
    for block in (0, 1, 0, 2, 0, 1):  # the one used longest ago goes
        assert made.peek(block * BLOCK, 5) == data[block * BLOCK :][:5]
    assert [int(r.partition("=")[2].partition("-")[0]) // BLOCK for r in server.requests] == [0, 1, 2, 1]
    assert made.read(0, len(data)) == data  # also where it is more than is kept


def test_streaming_fetches_ahead(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AHEAD", 4 << 20)
    data = noise(10 << 20)
    made = source(server, data)
    assert b"".join(made.chunks()) == data
    starts = [int(request.partition("=")[2].partition("-")[0]) >> 20 for request in server.requests]
    assert starts == [0, 1, 5, 9]
    assert server.sent == len(data)


def test_reading_here_and_there_fetches_nothing_else(server: Server) -> None:
    data = noise(4 << 20)
    made = source(server, data)
    for at in (3 << 20, 1 << 20, 2 << 18):
        assert made.read(at, 1 << 19) == data[at : at + (1 << 19)]
    assert server.sent == 3 << 19


def test_two_threads(server: Server) -> None:
    data = noise(20 * BLOCK)
    made = source(server, data)
    wrong: list[int] = []

    def read(seed: int) -> None:
        for at in np.random.default_rng(seed).integers(0, len(data) - 1000, 40).tolist():
            if made.read(at, 1000) != data[at : at + 1000]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_redirect_is_followed(server: Server) -> None:
    big_safetensors(server.folder / "model.safetensors")
    checkpoint = open_checkpoint(f"{server.url}/moved/model.safetensors")
    assert len(checkpoint.state_dicts[0].tensors) == 10
    assert server.sent == BLOCK


def test_a_query_is_passed_on_but_not_shown(server: Server) -> None:
    safetensors.numpy.save_file({"a": np.ones(2)}, server.folder / "m.safetensors")
    checkpoint = open_checkpoint(f"{server.url}/m.safetensors?signature=secret")
    assert checkpoint.path == f"{server.url}/m.safetensors"
    assert all("?signature=secret" in request for request in server.requests)
    (server.folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(CkptError) as caught:
        open_checkpoint(f"{server.url}/model.safetensors.index.json?signature=secret")
    assert "secret" not in str(caught.value)


# --- what goes wrong


def failure(url: str) -> CkptError:
    with pytest.raises(CkptError) as caught:
        open_checkpoint(url)
    assert caught.value.path == url
    return caught.value


@pytest.mark.parametrize(
    ("status", "kind", "problem"),
    [
        (404, NotFound, "there is no such file (the server answers 404)"),
        (410, NotFound, "there is no such file (the server answers 410)"),
        (401, NotFound, "access is denied (the server answers 401)"),
        (403, NotFound, "access is denied (the server answers 403)"),
        (429, CkptError, "the server answers 429"),
        (503, CkptError, "the server answers 503"),
    ],
)
def test_answers(server: Server, status: int, kind: type[CkptError], problem: str) -> None:
    server.status = status
    error = failure(f"{server.url}/model.pt")
    assert (type(error), error.problem) == (kind, problem)


def test_an_answer_in_the_middle(server: Server) -> None:
    made = source(server, noise(100))
    server.status = 503
    with pytest.raises(CkptError, match="the server answers 503"):
        made.peek(0, 1)


def test_a_server_without_ranges(server: Server, torch: ModuleType) -> None:
    torch.save(torch.ones(1_000_000), server.folder / "model.pt")
    server.ranges = False
    error = failure(f"{server.url}/model.pt")
    assert isinstance(error, UnsupportedFeature)
    assert error.problem == "the server sends whole files only, not ranges of them"
    assert error.remedy == "Download the file, and name the copy"


def test_a_server_that_tells_no_length(server: Server) -> None:
    (server.folder / "model.pt").write_bytes(noise(1000))
    server.lengths = False
    error = failure(f"{server.url}/model.pt")
    assert (type(error), error.problem) == (UnsupportedFeature, "the server does not tell how long the file is")


def test_a_connection_that_breaks_off(server: Server) -> None:
    made = source(server, noise(5 * BLOCK))
    server.cut = True
    with pytest.raises(CkptError, match="the connection broke off") as caught:
        made.peek(BLOCK, 3 * BLOCK)
    assert (caught.value.path, caught.value.offset) == (f"{server.url}/data", BLOCK)


def test_a_server_that_says_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.2)
    server.silent = threading.Event()
    assert failure(f"{server.url}/model.pt").problem == "the server did not answer in time"


def test_no_server(server: Server) -> None:
    host, _, port = server.url.rpartition(":")
    error = failure(f"{host}:1/model.pt")
    assert error.problem.startswith("the server cannot be reached: ")
    assert port != "1"


def test_a_web_page(server: Server) -> None:
    (server.folder / "model.pt").write_text("<!DOCTYPE html><html><title>Sign in</title></html>")
    assert "Sign in" in str(failure(f"{server.url}/model.pt"))


def test_an_unknown_scheme() -> None:
    error = failure("carrier-pigeon://a/model.pt")
    assert isinstance(error, UnsupportedFeature)
    assert "carrier-pigeon" in error.problem


def test_a_scheme_that_needs_a_package_of_its_own() -> None:
    if fsspec.utils.get_package_version_without_import("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(MissingDependency) as caught:
        open_checkpoint("s3://bucket/model.pt")
    assert str(caught.value) == (
        "reading s3://bucket/model.pt needs the package s3fs, which is not installed. Install it with: pip install s3fs"
    )


@pytest.mark.parametrize("package", ["fsspec", "aiohttp"])
def test_without_the_extra(package: str) -> None:
    program = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from ckpt_tools.formats import open_checkpoint\n"
        "from ckpt_tools.errors import MissingDependency\n"
        "try:\n    open_checkpoint('https://example.invalid/model.pt')\n"
        "except MissingDependency as error:\n    print(error)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == (
        f"reading https://example.invalid/model.pt needs the package {package}, which is not installed. "
        "Install it with: pip install 'ckpt-tools[remote]'\n",
        "",
    )


def test_local_files_do_not_load_it(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "m.safetensors")
    program = (
        "import sys\nfrom ckpt_tools.formats import open_checkpoint\nopen_checkpoint(sys.argv[1])\n"
        "print({'fsspec', 'aiohttp', 'ckpt_tools.remote'} & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "m.safetensors"], capture_output=True, text=True
    )
    assert (process.stdout, process.stderr) == ("set()\n", "")


# --- other schemes


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def upload(memory: Any, folder: Path, path: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            memory.pipe_file(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


@pytest.mark.parametrize(
    "name",
    ["sharded/safetensors", "sharded/bin", "distributed/one_rank", "distributed/two_ranks", "distributed/hugging_face",
     "deepspeed/zero_2", "deepspeed/zero_3", "peft/lora"],
)  # fmt: skip
def test_folders(memory: Any, fixtures_dir: Path, name: str) -> None:
    upload(memory, fixtures_dir / name, "/bucket/model")
    found = open_checkpoint("memory://bucket/model")
    expected = open_checkpoint(fixtures_dir / name)
    assert (found.format, found.kind, found.title) == (expected.format, expected.kind, expected.title)
    assert [digest(s.tensors) for s in found.state_dicts] == [digest(s.tensors) for s in expected.state_dicts]
    assert found.size == expected.size


def test_a_folder_that_is_none(memory: Any) -> None:
    memory.pipe_file("/bucket/other/readme", b"")
    with pytest.raises(CkptError, match="the folder holds no checkpoint"):
        open_checkpoint("memory://bucket/other")


def test_nothing_there(memory: Any) -> None:
    error = failure("memory://bucket/nothing.pt")
    assert (type(error), error.problem) == (NotFound, "there is no such file")


def test_a_folder_and_what_is_in_it(memory: Any) -> None:
    for path in ("/b/f/one", "/b/f/two", "/b/f/sub/three"):
        memory.pipe_file(path, path.encode())
    folder = open_url("memory://b/f")
    assert isinstance(folder, RemoteFolder)
    assert (folder.names(), folder.folders()) == (["one", "two"], ["sub"])
    below = folder.folder("sub")
    assert (below.name, below.names()) == ("memory://b/f/sub", ["three"])
    three = folder.open("sub/three")
    assert (three.name, three.read(0, three.size)) == ("memory://b/f/sub/three", b"/b/f/sub/three")
    parent = three.folder()
    assert parent is not None and (parent.name, parent.names()) == ("memory://b/f/sub", ["three"])
    for name in ("sub", "gone"):
        with pytest.raises(NotFound):
            folder.open(name)
    for name in ("../x", "/x", "sub/../../x"):
        with pytest.raises(CorruptFile, match="outside its folder"):
            folder.open(name)


def test_a_chain(tmp_path: Path, fixtures_dir: Path) -> None:
    """A checkpoint in a zip file that is itself at a URL."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in (fixtures_dir / "sharded" / "safetensors").iterdir():
            archive.write(file, f"model/{file.name}")
    url = f"zip://model/model.safetensors.index.json::file://{tmp_path}/all.zip"
    checkpoint = open_checkpoint(url)
    assert checkpoint.path == url
    assert checkpoint.parts[0].path == (f"zip://model/model-00001-of-00002.safetensors::file://{tmp_path}/all.zip")
    expected = open_checkpoint(fixtures_dir / "sharded" / "safetensors")
    assert digest(checkpoint.state_dicts[0].tensors) == digest(expected.state_dicts[0].tensors)


def test_a_file_url_is_a_local_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abc")
    found, folder = open_url(f"file://{tmp_path}/data"), open_url(f"file://{tmp_path}")
    assert isinstance(found, FileSource) and found.locate(1) == (str(tmp_path / "data"), 1)
    assert type(folder) is Folder and folder.names() == ["data"]


# --- the command line


def test_inspect(server: Server, run: Any) -> None:
    safetensors.numpy.save_file({"a": np.ones((2, 3), "<f4")}, server.folder / "m.safetensors")
    outcome = run("inspect", f"{server.url}/m.safetensors")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith(f"{server.url}/m.safetensors: state_dict, 1 tensor, 6 elements")
    outcome = run("inspect", f"{server.url}/gone.pt")
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == f"ckpt: {server.url}/gone.pt: there is no such file (the server answers 404)\n"
