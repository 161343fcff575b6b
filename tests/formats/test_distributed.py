"""Distributed checkpoints as torch writes them, read against torch's own reader; and what is missing or made up."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.sources import FileSource
from tests.formats.as_torch import by_name, dense_bytes

torch = pytest.importorskip("torch")
dcp: ModuleType = pytest.importorskip("torch.distributed.checkpoint")
meta: ModuleType = pytest.importorskip("torch.distributed.checkpoint.metadata")

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled",
    "ignore:TypedStorage is deprecated",
    "ignore:Detected an existing checkpoint",
)


def save(state: dict[str, Any], folder: Path, **options: Any) -> Path:
    """*state* as one process saves it."""
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, sync_files=False, **options), no_dist=True)
    return folder


def load(folder: Path) -> dict[str, Any]:
    """The whole state as torch.distributed.checkpoint.format_utils collects it."""
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    hugging_face = any(folder.glob("*.safetensors"))
    reader = (dcp.HuggingFaceStorageReader if hugging_face else dcp.FileSystemReader)(folder)
    _load_state_dict(state, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return state


def in_chunks(whole: Any, *cuts: list[int]) -> Any:
    """*whole* as a tensor that is saved in chunks, cut in each dimension at *cuts*."""
    edges = [list(itertools.pairwise([0, *at, size])) for at, size in zip(cuts, whole.shape, strict=True)]
    boxes = list(itertools.product(*edges))
    tensor = whole.clone()
    tensor.global_shape = tuple(whole.shape)
    tensor.global_offsets = tensor.local_offsets = tuple(tuple(a for a, _ in box) for box in boxes)
    tensor.local_sizes = tuple(tuple(b - a for a, b in box) for box in boxes)
    return tensor


def assert_equal(found: object, expected: object, where: str = "") -> None:
    """What is described is what torch loads."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, TensorInfo), where
        assert (f"torch.{found.dtype}", found.shape) == (str(expected.dtype), tuple(expected.shape)), where
        assert read_bytes(found) == dense_bytes(expected), where
    elif isinstance(expected, Mapping):
        assert isinstance(found, Mapping), where
        assert list(map(str, found)) == list(map(str, expected)), where
        for (key, inner), value in zip(found.items(), expected.values(), strict=True):
            assert_equal(inner, value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), where
        assert len(found) == len(expected), where
        for index, (inner, value) in enumerate(zip(found, expected, strict=True)):
            assert_equal(inner, value, f"{where}[{index}]")
    else:
        assert found == expected, where


def said(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    return [(anomaly.where, anomaly.what) for anomaly in checkpoint.anomalies]


# --- as torch writes it


def training_state() -> dict[str, Any]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    model(torch.randn(6, 5)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "rng": [torch.get_rng_state(), {"deep": [torch.ones(2), None, "text"]}],
        "names": ("a", "b"),
        "nothing": {},
    }


def test_a_training_checkpoint(tmp_path: Path) -> None:
    folder = save(training_state(), tmp_path / "step")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.format, checkpoint.kind) == ("distributed", "training")
    assert checkpoint.title == "torch.distributed.checkpoint, 1 file of 1 rank"
    assert_equal(checkpoint.values, load(folder))
    assert said(checkpoint) == []
    assert [(s.path, s.role) for s in checkpoint.state_dicts][:2] == [
        (("model",), "model"),
        (("optimizer",), "optimizer"),
    ]
    assert [t.name for t in checkpoint.state_dicts[0].tensors] == list(training_state()["model"])
    run = checkpoint.training
    assert run is not None and run.epoch is not None and run.lr is not None
    assert (run.epoch.value, run.lr.value) == (7, 0.002)
    (optimizer,) = run.optimizers
    assert (optimizer.algorithm, list(optimizer.state)) == ("AdamW", [0, 1, 2, 3, 4, 5])
    assert optimizer.groups[0].params == (0, 1, 2, 3, 4, 5)
    assert checkpoint.producer["torch.distributed.checkpoint"] == "format 1.0.0"
    assert checkpoint.metadata["checkpoint_id"] == str(folder)
    assert checkpoint.size == sum(file.stat().st_size for file in folder.iterdir())


def test_a_whole_tensor_lies_in_its_file(tmp_path: Path) -> None:
    folder = save({"a": torch.arange(5.0), "b": torch.arange(6, dtype=torch.int16)}, tmp_path / "step")
    tensors = by_name(open_checkpoint(folder))
    for name, expected in (("a", torch.arange(5.0)), ("b", torch.arange(6, dtype=torch.int16))):
        storage = tensors[name].storage
        assert storage is not None
        place = storage.source.locate(storage.offset)
        assert place is not None and place[0] == str(folder / "__0_0.distcp")
        data = Path(place[0]).read_bytes()
        assert data[place[1] : place[1] + storage.nbytes] == dense_bytes(expected)
        assert tensors[name].details == {}


SHAPES: dict[str, Callable[[], Any]] = {
    "rows": lambda: in_chunks(torch.randn(7, 3), [2, 4], []),
    "columns": lambda: in_chunks(torch.randn(4, 9).bfloat16(), [], [1, 5]),
    "grid": lambda: in_chunks(torch.arange(4 * 5 * 6).view(4, 5, 6), [1, 3], [2], [5]),
    "empty chunks": lambda: in_chunks(torch.randn(3, 2), [1, 3, 3], []),
    "transposed": lambda: torch.randn(3, 4).T,
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "conjugate": lambda: torch.randn(4, dtype=torch.complex64).conj(),
    "view": lambda: torch.randn(100)[10:13],
    "expanded": lambda: torch.randn(3, 1).expand(3, 4),
    "scalar": lambda: torch.tensor(3, dtype=torch.int8),
    "no elements": lambda: torch.empty(0, 3),
    "float8": lambda: torch.randn(4, 4).to(torch.float8_e4m3fn),
    "bool": lambda: torch.tensor([True, False, True]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_tensors(tmp_path: Path, name: str) -> None:
    torch.manual_seed(2)
    tensor = SHAPES[name]()
    folder = save({"t": tensor}, tmp_path / "step", thread_count=2)
    found = by_name(open_checkpoint(folder))["t"] if name != "scalar" else open_checkpoint(folder).values["t"]  # type: ignore[index]
    assert_equal(found, tensor)
    assert found.contiguous
    if name != "conjugate":  # which torch's own reader cannot copy into place
        assert_equal(found, load(folder)["t"])


def test_chunks_are_counted_and_spread_over_files(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    folder = save({"model": {"w": in_chunks(whole, [2, 4], [2])}}, tmp_path / "step", single_file_per_rank=False)
    assert len(list(folder.glob("*.distcp"))) == 6
    checkpoint = open_checkpoint(folder)
    tensor = by_name(checkpoint, "model")["w"]
    assert tensor.details == {"chunks": 6}
    assert read_bytes(tensor) == dense_bytes(whole)
    assert checkpoint.title == "torch.distributed.checkpoint, 6 files of 1 rank"


TWO_RANKS = """
import os, sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

child = os.fork()
rank = 0 if child else 1
store = dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
whole = {"rows": torch.randn(5, 3), "columns": torch.randn(4, 7), "copied": torch.randn(3)}
whole["half"] = torch.randn(6).bfloat16()
how = {"rows": Shard(0), "columns": Shard(1), "copied": Replicate(), "half": Shard(0)}
sharded = {name: distribute_tensor(tensor, mesh, [how[name]]) for name, tensor in whole.items()}
dcp.save({"model": sharded, "epoch": 4}, checkpoint_id=sys.argv[1])
writer = dcp.HuggingFaceStorageWriter(sys.argv[1] + "-hf", save_distributed=True)
dcp.save(sharded, storage_writer=writer)
dist.barrier()
dist.destroy_process_group()
if child:
    torch.save(whole, sys.argv[1] + ".pt")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_ranks(tmp_path: Path) -> None:
    """FSDP's way: DTensors, of which each process saves its own part."""
    folder = tmp_path / "step"
    arguments = [sys.executable, "-W", "ignore", "-c", TWO_RANKS, folder, tmp_path / "store"]
    process = subprocess.run(arguments, capture_output=True, text=True, timeout=250)
    assert process.returncode == 0, process.stderr
    whole = torch.load(tmp_path / "step.pt", weights_only=True)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.title == "torch.distributed.checkpoint, 2 files of 2 ranks"
    found = by_name(checkpoint, "model")
    assert_equal({name: found[name] for name in whole}, whole)
    chunks = {name: tensor.details.get("chunks", 1) for name, tensor in found.items()}
    assert chunks == {"rows": 2, "columns": 2, "copied": 1, "half": 2}
    assert checkpoint.training is not None and checkpoint.training.epoch is not None
    assert checkpoint.training.epoch.value == 4
    hugging_face = open_checkpoint(tmp_path / "step-hf")
    assert hugging_face.title == "torch.distributed.checkpoint in safetensors (Hugging Face), 2 files"
    found = by_name(hugging_face)
    assert_equal({name: found[name] for name in whole}, whole)


def test_without_collectives_each_rank_has_its_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        writer = dcp.FileSystemWriter(tmp_path, sync_files=False)
        writer.rank, writer.use_collectives = rank, False
        planner = dcp.DefaultSavePlanner()
        planner.set_up_planner({"w": torch.full((2,), float(rank))}, is_coordinator=True)
        plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
        results = writer.write_data(planner.finish_plan(plans[0]), planner).wait()
        writer.finish(metadata, [results])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "__0.metadata", "__0_0.distcp", "__1.metadata", "__1_0.distcp",
    ]  # fmt: skip
    checkpoint = open_checkpoint(tmp_path)
    assert {s.path: read_bytes(s["w"]) for s in checkpoint.state_dicts} == {
        ("__0",): np.zeros(2, "<f4").tobytes(),
        ("__1",): np.ones(2, "<f4").tobytes(),
    }
    assert [p.member for p in checkpoint.pickles] == ["__0.metadata", "__1.metadata"]


def test_any_file_of_it_stands_for_the_whole(tmp_path: Path) -> None:
    folder = save({"a": torch.arange(5.0), "b": 1}, tmp_path / "step")
    for name in (".metadata", "__0_0.distcp"):
        checkpoint = open_checkpoint(folder / name)
        assert (checkpoint.path, sorted(checkpoint.values)) == (str(folder / name), ["a", "b"])  # type: ignore[call-overload]


def test_objects_say_what_loading_them_would_run(tmp_path: Path) -> None:
    folder = save({"a": torch.ones(2), "config": Path("/x")}, tmp_path / "step")
    checkpoint = open_checkpoint(folder)
    members = {pickle.member: {str(use) for use in pickle.globals} for pickle in checkpoint.pickles}
    assert list(members) == [".metadata", "__0_0.distcp: config"]
    assert any(name.endswith("PosixPath") for name in members["__0_0.distcp: config"])
    (refusal,) = checkpoint.refusals or ()
    assert (refusal.subject, refusal.is_global) == ("distributed checkpoint", False)


def test_no_tensor_is_opened_before_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save({"a": torch.randn(300, 300), "b": 2}, tmp_path / "step")
    read: list[tuple[str, int, int]] = []
    peek = FileSource.peek

    def spy(self: FileSource, offset: int, count: int) -> bytes:
        read.append((Path(self.name).name, offset, count))
        return peek(self, offset, count)

    monkeypatch.setattr(FileSource, "peek", spy)
    tensor = by_name(open_checkpoint(folder))["a"]
    assert max(offset + count for name, offset, count in read if name != ".metadata") < 2000
    assert len(read_bytes(tensor)) == 360_000


# --- made up: what Metadata says, and what the files hold


def chunk(offsets: list[int], sizes: list[int]) -> Any:
    return meta.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def entry(size: list[int], *chunks: Any, dtype: Any = None) -> Any:
    properties = meta.TensorProperties(dtype=dtype or torch.float32)
    return meta.TensorStorageMetadata(properties, torch.Size(size), list(chunks))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def place(file: str, offset: int, length: int, **more: Any) -> Any:
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    return _StorageInfo(file, offset, length, **more)


Places = dict[tuple[str, tuple[int, ...] | None], Any]


def write(
    folder: Path, entries: dict[str, Any], places: Places, files: dict[str, bytes], planner: Any = None, **more: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    storage = {meta.MetadataIndex(name, offsets): info for (name, offsets), info in places.items()}
    metadata = meta.Metadata(entries, planner, storage, **more)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


HALF = torch.arange(6.0).view(2, 3)
DATA = saved(HALF)
FILE = "__0_0.distcp"


def one(folder: Path, **changes: Any) -> Path:
    """A checkpoint of one tensor ``w`` in two chunks, with *changes*."""
    given: dict[str, Any] = {
        "entries": {"w": entry([4, 3], chunk([0, 0], [2, 3]), chunk([2, 0], [2, 3]))},
        "places": {
            ("w", (0, 0)): place(FILE, 0, len(DATA)),
            ("w", (2, 0)): place(FILE, len(DATA), len(DATA)),
        },
        "files": {FILE: DATA + DATA},
        **changes,
    }
    return write(folder, **given)


def refused(folder: Path) -> CkptError:
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(folder)
    return caught.value


def test_one_is_right(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(one(tmp_path))
    assert read_bytes(by_name(checkpoint)["w"]) == 2 * dense_bytes(HALF)
    assert (checkpoint.producer, said(checkpoint)) == ({"torch.distributed.checkpoint": "format without a version"}, [])


def test_missing_files_are_named_together(tmp_path: Path) -> None:
    places = {("w", (0, 0)): place("__0_0.distcp", 0, 10), ("w", (2, 0)): place("__1_0.distcp", 0, 10)}
    error = refused(one(tmp_path, places=places, files={}))
    assert error.problem == (
        "2 of 2 files are missing, and with them 1 entry, in whole or in part: __0_0.distcp, __1_0.distcp (w)"
    )
    assert (error.path, error.member) == (str(tmp_path), ".metadata")


def test_one_missing_file(tmp_path: Path) -> None:
    folder = save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "step", single_file_per_rank=False)
    (folder / "__0_1.distcp").unlink()
    assert refused(folder).problem == (
        "1 of 2 files is missing, and with it 1 entry, in whole or in part: __0_1.distcp (b)"
    )


def test_no_metadata(tmp_path: Path) -> None:
    one(tmp_path)
    (tmp_path / ".metadata").unlink()
    error = refused(tmp_path)
    assert "1 file of a distributed checkpoint, but no .metadata that tells what is in them" in str(error)


def test_a_truncated_file(tmp_path: Path) -> None:
    error = refused(one(tmp_path, files={FILE: (DATA + DATA)[:-1]}))
    end = 2 * len(DATA)
    assert error.problem == (
        f"{tmp_path / FILE}: w would take the bytes {len(DATA):,} to {end:,}, but the file ends at byte {end - 1:,}"
    )


def test_a_truncated_file_of_torch(tmp_path: Path) -> None:
    folder = save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "step")
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[:-100])
    assert "b would take the bytes" in refused(folder).problem


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:x"])
def test_files_outside_the_folder(tmp_path: Path, file: str) -> None:
    places = {("w", (0, 0)): place(file, 0, 10), ("w", (2, 0)): place(FILE, 0, 10)}
    assert "outside its folder" in str(refused(one(tmp_path, places=places)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"places": {}}, "the chunk of w at (0, 0) is listed, but has no place in a file"),
        (
            {"places": {("w", (0, 0)): place(FILE, 0, 99), ("w", (1, 0)): place(FILE, 0, 99)}},
            "the chunk of w at (2, 0) is listed, but has no place in a file",
        ),
        (
            {"entries": {"w": entry([4, 3], chunk([0, 0], [2, 3]))}},
            "w has 12 elements, of which its chunks hold 6",
        ),
        (
            {"entries": {"w": entry([4, 3], chunk([0, 0], [3, 3]), chunk([2, 0], [2, 3]))}},
            "w: the chunks at (0, 0) and at (2, 0) overlap",
        ),
        (
            {"entries": {"w": entry([3, 3], chunk([0, 0], [2, 3]), chunk([2, 0], [2, 3]))}},
            "w is of shape 3×3; its chunk 2×3 at (2, 0) reaches out",
        ),
        (
            {"entries": {"w": entry([1 << 40, 3], chunk([0, 0], [1 << 40, 3]))}},
            f"w: a chunk of {12 << 40:,} bytes would lie in {len(DATA):,} bytes of {FILE}",
        ),
        ({"entries": {"w": entry([1] * 65, chunk([0, 0], [2, 3]))}}, "in place of sizes or offsets"),
        ({"entries": {"w": "text"}}, "w is described by 'text', which is neither tensor nor object"),
        ({"entries": {1: entry([])}}, "an entry goes by 1, which is no name"),
        ({"entries": []}, "its state_dict_metadata is no mapping but a list"),
        ({"entries": {"w": entry([2], dtype=torch.strided)}}, "w is of the unknown dtype"),
        ({"entries": {"w": meta.BytesStorageMetadata()}}, "w is listed, but has no place in a file"),
        (
            {"entries": {"w": meta.BytesStorageMetadata()}, "places": {("w", None): place(FILE, 3, 200)}},
            "w: no archive of torch.save lies where the metadata has one",
        ),
        (
            {"places": {("w", (0, 0)): place(FILE, -1, 10), ("w", (2, 0)): place(FILE, 0, 10)}},
            "w would take the bytes -1 to 9",
        ),
        ({"places": {("w", (0, 0)): place(FILE, "0", 10)}}, "w has the place ('0', 10) in a file"),
        ({"places": {("w", (0, 0)): place(FILE, 0, None)}}, "w has the place (0, None) in a file"),
        ({"places": {("w", (0, 0)): "there"}}, "something else than MetadataIndex and _StorageInfo"),
        ({"places": {("w", (0, 0)): place(None, 0, 1)}}, "a place in a file is given without a name: ('w', None)"),
    ],
)
def test_what_metadata_may_not_say(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    error = refused(one(tmp_path, **changes))
    assert problem in str(error)
    assert error.path is not None


def test_metadata_without_places(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(meta.Metadata({})))
    assert refused(tmp_path).problem == "its storage_data is no mapping but None"


@pytest.mark.parametrize("value", [{"a": 1}, meta.StorageMeta(), 3])
def test_a_pickle_of_something_else(tmp_path: Path, value: object) -> None:
    one(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(value))
    assert "a pickle of something else than the Metadata of a distributed checkpoint" in str(refused(tmp_path))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (HALF.double(), "holds float64 of (2, 3), where .metadata has float32 of (2, 3)"),
        (HALF.T.contiguous(), "holds float32 of (3, 2), where .metadata has float32 of (2, 3)"),
        ({"w": HALF}, "holds a OrderedDict, where .metadata has float32 of (2, 3)"),
        (None, "holds None, where .metadata has float32 of (2, 3)"),
    ],
)
def test_an_archive_of_something_else(tmp_path: Path, value: Any, problem: str) -> None:
    data = saved(value)
    data += bytes(max(0, len(DATA) - len(data)))
    places = {("w", (0, 0)): place(FILE, 0, len(saved(value))), ("w", (2, 0)): place(FILE, 0, len(saved(value)))}
    tensor = by_name(open_checkpoint(one(tmp_path, files={FILE: data}, places=places)))["w"]
    with pytest.raises(CorruptFile) as caught:
        read_bytes(tensor)
    assert problem.replace("OrderedDict", "dict") in str(caught.value).replace("OrderedDict", "dict")
    assert str(tmp_path / FILE) in str(caught.value)


def test_extensions_are_not_undone(tmp_path: Path) -> None:
    places = {
        ("w", (0, 0)): place(FILE, 0, 5, transform_descriptors=["stream.zstd/1?level=3"]),
        ("w", (2, 0)): place(FILE, 5, 5, transform_descriptors=["stream.zstd/1?level=3"]),
        ("n", None): place(FILE, 0, 5, transform_descriptors=["stream.zstd/1?level=3"]),
    }
    entries = {"w": entry([4, 3], chunk([0, 0], [2, 3]), chunk([2, 0], [2, 3])), "n": meta.BytesStorageMetadata()}
    checkpoint = open_checkpoint(one(tmp_path, entries=entries, places=places))
    assert checkpoint.values["n"] == "<stored through the extension stream.zstd/1?level=3>"  # type: ignore[index]
    with pytest.raises(UnsupportedFeature, match="stored through the extension stream"):
        read_bytes(by_name(checkpoint)["w"])


def test_what_is_left_over_is_told(tmp_path: Path) -> None:
    places = {
        ("w", (0, 0)): place(FILE, 0, len(DATA)),
        ("w", (2, 0)): place(FILE, len(DATA), len(DATA)),
        ("gone", None): place(FILE, 0, 4),
    }
    one(tmp_path, places=places, files={FILE: DATA + DATA, "__5_0.distcp": b"older", "common.pt": b""})
    with (tmp_path / ".metadata").open("ab") as file:
        file.write(b"xyz")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.metadata == {"not described": "common.pt"}
    assert said(checkpoint) == [
        (".metadata", "3 bytes follow the end of the pickle"),
        (".metadata", "places are given for what is no entry: gone"),
        ("__5_0.distcp", "a file that .metadata does not mention"),
    ]


# --- paths


def objects(folder: Path, paths: dict[str, Any]) -> Checkpoint:
    """A checkpoint of one object a name, each with its path."""
    data = saved(5)
    return open_checkpoint(
        write(
            folder,
            {name: meta.BytesStorageMetadata() for name in paths},
            {(name, None): place(FILE, 0, len(data)) for name in paths},
            {FILE: data},
            {name: path for name, path in paths.items() if path is not None},
        )
    )


@pytest.mark.parametrize(
    ("paths", "values"),
    [
        ({"a.b": ("a", "b"), "a.c": ("a", "c")}, {"a": {"b": 5, "c": 5}}),
        ({"a.0": ("a", 0), "a.1.x": ("a", 1, "x")}, {"a": [5, {"x": 5}]}),
        ({"a.2": ("a", 2)}, {"a": [None, None, 5]}),
        ({"a.1000": ("a", 1000)}, {"a": {1000: 5}}),
        ({"a.-1": ("a", -1)}, {"a": {-1: 5}}),
        ({"a": ("a", 0), "b": ("a", "x")}, {"a": {0: 5, "x": 5}}),
        ({"a.b": None}, {"a.b": 5}),
        ({"a.b": ()}, {"a.b": 5}),
        ({"a.b": "ab"}, {"a.b": 5}),
        ({"a.b": ("a", 1.5)}, {"a.b": 5}),
        (
            {"o.state.0.s": ("o", "state", "0", "s"), "o.g": ("o", "param_groups")},
            {"o": {"state": {0: {"s": 5}}, "param_groups": 5}},
        ),
        (
            {"o.state.w.s": ("o", "state", "w", "s"), "o.g": ("o", "param_groups")},
            {"o": {"state": {"w": {"s": 5}}, "param_groups": 5}},
        ),
        ({"o.state.0.s": ("o", "state", "0", "s")}, {"o": {"state": {"0": {"s": 5}}}}),
    ],
)  # fmt: skip
def test_paths(tmp_path: Path, paths: dict[str, Any], values: object) -> None:
    assert objects(tmp_path, paths).values == values


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ({"a": ("a",), "b": ("a",)}, "two entries stand at ('a',)"),
        ({"a": ("a",), "b": ("a", "b")}, "an entry stands at ('a', 'b'), below another that holds a value"),
        ({"b": ("a", "b"), "a": ("a",)}, "two entries stand at ('a',)"),
    ],
)
def test_paths_that_collide(tmp_path: Path, paths: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        objects(tmp_path, paths)
    assert problem in str(caught.value)


def test_paths_too_deep(tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded, match="a stands 10,000 levels deep"):
        objects(tmp_path, {"a": ("x",) * 10_000})


def test_repeated_chunks_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    many = [chunk([0], [0])] * 20_000
    entries = {f"t{i}": meta.TensorStorageMetadata(meta.TensorProperties(), torch.Size([0]), many) for i in range(2000)}
    places: Places = {(f"t{i}", (0,)): place(FILE, 0, 10) for i in range(2000)}
    with pytest.raises(LimitExceeded, match="more chunks are listed than the pickle has room for"):
        open_checkpoint(write(tmp_path, entries, places, {FILE: bytes(10)}))


def test_damaged_metadata_gives_a_description_or_an_error(tmp_path: Path) -> None:
    step = 3
    folder = one(tmp_path)
    data = (folder / ".metadata").read_bytes()
    described = 0
    for at in range(0, len(data), step):
        for byte in {data[at] ^ 0xFF, data[at] ^ 0x01, 0x7F} - {data[at]}:
            (folder / ".metadata").write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
            try:
                for state_dict in open_checkpoint(folder).state_dicts:
                    for tensor in state_dict.tensors:
                        read_bytes(tensor)
                described += 1
            except CkptError as error:
                assert str(error)
    for size in range(0, len(data), step):
        (folder / ".metadata").write_bytes(data[:size])
        with pytest.raises(CkptError):
            open_checkpoint(folder)
    assert described


# --- the Hugging Face variant


def shard(folder: Path, rank: int, offsets: object, **tensors: np.ndarray) -> None:
    metadata = {"format": "pt", "DCP_VERSION": "1.0"}
    if offsets is not None:
        metadata["DCP_SHARDING_INFO"] = offsets if isinstance(offsets, str) else json.dumps(offsets)
    safetensors.numpy.save_file(tensors, folder / f"shard-{rank:05}-model-00001-of-00001.safetensors", metadata)


ROWS = np.arange(12, dtype="<f4").reshape(4, 3)


def at(*offsets: int) -> dict[str, Any]:
    return {"w": {"saved_offsets": list(offsets)}}


def test_hugging_face(tmp_path: Path) -> None:
    shard(tmp_path, 1, at(0, 0), w=ROWS[:3])
    shard(tmp_path, 2, at(3, 0), w=ROWS[3:])
    checkpoint = open_checkpoint(tmp_path)
    tensor = by_name(checkpoint)["w"]
    assert (tensor.shape, read_bytes(tensor), tensor.details) == ((4, 3), ROWS.tobytes(), {"chunks": 2})
    assert checkpoint.metadata == {
        "shapes": "inferred from the chunks: the format does not record those of whole tensors"
    }
    assert len(checkpoint.parts) == 2
    assert_equal(tensor, load(tmp_path)["w"])


def test_hugging_face_as_one_process_writes_it(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.randn(2).bfloat16()}
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    dcp.save(state, storage_writer=writer, no_dist=True)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.metadata) == ("distributed", {})
    assert_equal(by_name(checkpoint), {name: state[name] for name in by_name(checkpoint)})


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ((2, at(2, 0), ROWS[2:]), "overlap"),
        ((3, at(3, 0), ROWS[3:]), "the shards of 1 rank are missing, below the highest number there is: shard-00002"),
        ((2, at(5, 0), ROWS[3:]), "w has 18 elements, of which its chunks hold 12"),
        ((2, at(3), ROWS[3:]), "the chunks of w differ in type or number of dimensions"),
        ((2, at(3, 0), ROWS[3:].astype("<f8")), "the chunks of w differ in type or number of dimensions"),
        ((2, at(12), ROWS[3]), "the chunks of w differ in type or number of dimensions"),
        ((2, at(3, -1), ROWS[3:]), "w has a size or offset of -1"),
        ((2, {"w": 3}, ROWS[3:]), "its DCP_SHARDING_INFO has no saved_offsets for w"),
        ((2, {"v": {}}, ROWS[3:]), "its DCP_SHARDING_INFO has no saved_offsets for w"),
        ((2, [1], ROWS[3:]), "its DCP_SHARDING_INFO has no saved_offsets for w"),
        ((2, {"w": {"saved_offsets": "ab"}}, ROWS[3:]), "w has 'ab' in place of sizes or offsets"),
        ((2, "{", ROWS[3:]), "its DCP_SHARDING_INFO is not valid JSON"),
        ((2, "[" * 100_000, ROWS[3:]), "its DCP_SHARDING_INFO is not valid JSON"),
    ],
)
def test_what_hugging_face_shards_may_not_say(
    tmp_path: Path, second: tuple[int, object, np.ndarray], problem: str
) -> None:
    rank, offsets, data = second
    shard(tmp_path, 1, at(0, 0), w=ROWS[:3])
    shard(tmp_path, rank, offsets, w=data)
    assert problem in str(refused(tmp_path))


def test_inspect(tmp_path: Path, run: Any) -> None:
    folder = save(training_state(), tmp_path / "step")
    outcome = run("inspect", folder)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "torch.distributed.checkpoint, 1 file of 1 rank" in outcome.stdout
    assert re.search(r"epoch +7 +\(at epoch\)", outcome.stdout)
    assert "torch.load(…)" not in outcome.stdout  # which takes no folder
