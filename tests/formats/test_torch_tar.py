"""The tar format against torch itself, which reads it from paths only."""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.tar import entries, is_header
from ckpt_tools.formats.torch_legacy import MAGIC
from ckpt_tools.sources import MemorySource
from tests.formats.as_torch import assert_only_ckpt_errors, assert_same_tensors, by_name, dense_bytes

torch = pytest.importorskip("torch")


def dumps(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def storage_row(key: int, kind: str, values: Sequence[float], count: int | None = None, location: str = "cpu") -> bytes:
    code = {"Float": "f", "Long": "q"}[kind]
    number = struct.pack("<q", len(values) if count is None else count)
    return (
        dumps((key, location, getattr(torch, f"{kind}Storage")))
        + number
        + struct.pack(f"<{len(values)}{code}", *values)
    )


def tensor_row(key: int, storage: int, size: Sequence[int], stride: Sequence[int], offset: int = 0) -> bytes:
    head = dumps((key, storage, torch.FloatTensor))
    return head + struct.pack(f"<i4x{2 * len(size) + 1}q", len(size), *size, *stride, offset)


class Refers:
    def __init__(self, pid: object) -> None:
        self.pid = pid


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, Refers) else None


def document(value: object) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


SYS_INFO = {"protocol_version": 1000, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def members(value: object, storages: Sequence[bytes], tensors: Sequence[bytes], views: object = ()) -> dict[str, bytes]:
    return {
        "sys_info": dumps(SYS_INFO),
        "pickle": document(value),
        "tensors": dumps(len(tensors)) + b"".join(tensors),
        "storages": dumps(len(storages)) + b"".join(storages) + dumps(list(views)),  # type: ignore[call-overload]
    }


def pack(parts: dict[str, bytes], format: int = tarfile.PAX_FORMAT, mtime: float = 0) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def load(data: bytes, **options: Any) -> Any:
        path = tmp_path / "whole.pt"
        path.write_bytes(data)
        return torch.load(path, **{"weights_only": False, **options})

    return load


STORAGES = [storage_row(10, "Float", range(6)), storage_row(20, "Long", [7, -8])]
TENSORS = [
    tensor_row(100, 10, [2, 3], [3, 1]),
    tensor_row(101, 10, [3, 2], [1, 3]),
    tensor_row(102, 10, [2], [2], 1),
    tensor_row(103, 20, [2], [1]),
    tensor_row(104, 10, [], [], 5),
]
VALUE = OrderedDict(
    [
        ("weight", Refers("100")),
        ("transposed", Refers("101")),
        ("tied", Refers("100")),
        ("strided", Refers("102")),
        ("steps", Refers("103")),
        ("scalar", Refers("104")),
    ]
)
WHOLE = members(VALUE, STORAGES, TENSORS)


@pytest.mark.parametrize(
    ("format", "mtime"), [(tarfile.PAX_FORMAT, 0.5), (tarfile.GNU_FORMAT, 0), (tarfile.USTAR_FORMAT, 0)]
)
def test_state_dict_is_what_torch_loads(format: int, mtime: float, load: Callable[..., Any]) -> None:
    data = pack(WHOLE, format, mtime)
    checkpoint = open_checkpoint(data)
    assert (checkpoint.format, checkpoint.kind) == ("torch_tar", "state_dict")
    assert_same_tensors(by_name(checkpoint), load(data))
    assert checkpoint.anomalies == ()
    assert [p.member for p in checkpoint.pickles] == ["sys_info", "storages", "tensors", "pickle"]
    assert [(str(use), use.uses) for use in checkpoint.pickles[1].globals] == [
        ("torch.FloatStorage", frozenset()),
        ("torch.LongStorage", frozenset()),
    ]


def test_weights_only_refuses_tar(load: Callable[..., Any]) -> None:
    data = pack(WHOLE)
    with pytest.raises(RuntimeError, match=r"legacy \.tar format"):
        load(data, weights_only=True)
    refusals = open_checkpoint(data).refusals
    assert refusals
    assert (refusals[0].subject, refusals[0].is_global) == ("tar", False)


def test_views_of_one_storage_share_it(load: Callable[..., Any]) -> None:
    tensors = [tensor_row(100, 10, [6], [1]), tensor_row(101, 30, [2], [1], 1), tensor_row(102, 40, [1], [1])]
    value = {"base": Refers("100"), "view": Refers("101"), "deeper": Refers(102)}
    data = pack(members(value, STORAGES[:1], tensors, [(30, 10, 2, 4), (40, 30, 3, 1)]))
    expected = load(data)
    found = by_name(open_checkpoint(data))
    assert {name: read_bytes(t) for name, t in found.items()} == {n: dense_bytes(t) for n, t in expected.items()}
    assert {name: t.storage_offset for name, t in found.items()} == {"base": 0, "view": 3, "deeper": 5}
    (storage,) = {t.storage for t in found.values()}
    assert storage is not None
    assert storage.key == "10"


def test_module_of_torch_0_1() -> None:
    class_row = Refers((torch.nn.Linear, "linear.py", "class Linear: pass\n"))

    class Rebuilds:
        def __init__(self, *parts: Any) -> None:
            self.parts = parts

        def __reduce_ex__(self, protocol: object) -> Any:
            return self.parts

    parameter = Rebuilds(torch.nn.Parameter, (Refers("100"),), (True, False, OrderedDict()))
    fields = {
        "training": False,
        "_parameters": OrderedDict(weight=parameter, bias=None),
        "_buffers": OrderedDict(),
        "_modules": OrderedDict(),
    }

    class Instance:
        def __reduce_ex__(self, protocol: object) -> Any:
            return copyreg._reconstructor, (class_row, object, None), fields  # type: ignore[attr-defined]

    checkpoint = open_checkpoint(pack(members(Instance(), STORAGES[:1], TENSORS[:1])))
    assert checkpoint.kind == "model"
    assert checkpoint.module is not None
    assert checkpoint.module.class_name == "torch.nn.modules.linear.Linear"
    weight = checkpoint.module.parameters["weight"]
    assert weight is not None
    assert (weight.shape, weight.requires_grad, weight.is_parameter) == ((2, 3), True, True)
    (source,) = checkpoint.metadata["sources"].values()
    assert (source, source.text) == ("linear.py", "class Linear: pass\n")


def test_last_of_two_members_counts(load: Callable[..., Any]) -> None:
    first = pack(WHOLE)
    other = members({"w": Refers("100")}, [storage_row(10, "Float", [9] * 6)], TENSORS[:1])
    data = first[: first.rindex(dumps([])) + 3]
    data = data + bytes(-len(data) % 512) + pack(other)
    checkpoint = open_checkpoint(data)
    assert_same_tensors(by_name(checkpoint), load(data))
    assert list(by_name(checkpoint)) == ["w"]


def test_cuda_location() -> None:
    row = storage_row(10, "Float", range(6), location="cuda:1")
    found = by_name(open_checkpoint(pack(members({"w": Refers("100")}, [row], TENSORS[:1]))))
    assert found["w"].device == "cuda:1"


def test_tar_that_is_a_legacy_file_too(load: Callable[..., Any]) -> None:
    data = bytearray(pack({MAGIC_NAME: b"", **WHOLE}, tarfile.USTAR_FORMAT))
    head = dumps(MAGIC)
    data[: len(head)] = head
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    assert is_header(bytes(data[:512]))
    checkpoint = open_checkpoint(bytes(data))
    assert checkpoint.format == "torch_tar"
    assert_same_tensors(by_name(checkpoint), load(bytes(data)))
    assert "legacy file" in checkpoint.anomalies[0].what


MAGIC_NAME = "first"


def test_entries_are_those_of_tarfile() -> None:
    name = "a/" * 60 + "long"
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        data = pack({"short": b"x" * 1000, name: b"y", "empty": b"", "last": b"z" * 512}, format)
        assert found(data) == of_tarfile(data)


def found(data: bytes) -> list[tuple[object, ...]]:
    return [tuple(entry) for entry in entries(MemorySource(data, "a.tar"))]


def of_tarfile(data: bytes) -> list[tuple[object, ...]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(m.name, m.offset_data, m.size, m.isreg(), m.issparse()) for m in archive.getmembers()]


@pytest.mark.parametrize("records", [{"path": "../x"}, {"size": "2000"}, {"size": "0"}, {"path": "a", "size": "7"}])
def test_records_for_all_entries_count_as_in_tarfile(records: dict[str, str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=records) as archive:
        for name in ("first", "second"):
            info = tarfile.TarInfo(name)
            info.size = 1000
            archive.addfile(info, io.BytesIO(b"x" * 1000))
    assert found(buffer.getvalue()) == of_tarfile(buffer.getvalue())


def test_a_sparse_file_is_no_file_as_it_stands() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in WHOLE.items():
            info = tarfile.TarInfo(name)
            if name == "pickle":
                data = b"1\n0\n%d\n".ljust(512, b"\0") % len(data) + data
                info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert [entry[4] for entry in found(buffer.getvalue())] == [name == "pickle" for name in WHOLE]
    with pytest.raises(CkptError, match="sparse"):
        open_checkpoint(buffer.getvalue())


def test_other_archives_are_not_taken() -> None:
    data = pack({"notes.txt": b"nothing here", "pickle": b"K\x01."})
    with pytest.raises(CkptError) as caught:
        open_checkpoint(data)
    assert "no member" not in str(caught.value)


# ------------------------------------------------------------------------------ what is wrong with a file


def refused(parts: dict[str, bytes]) -> str:
    with pytest.raises(CkptError) as caught:
        open_checkpoint(pack(parts))
    return str(caught.value)


@pytest.mark.parametrize("name", ["pickle", "tensors", "storages"])
def test_missing_member(name: str) -> None:
    parts = {key: data for key, data in WHOLE.items() if key != name}
    assert f"no member '{name}'" in refused(parts)


def test_member_that_is_a_link() -> None:
    buffer = io.BytesIO(pack({k: v for k, v in WHOLE.items() if k != "storages"}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        info = tarfile.TarInfo("storages")
        info.type, info.linkname = tarfile.SYMTYPE, "/dev/zero"
        archive.addfile(info)
    with pytest.raises(CorruptFile, match="no regular file"):
        open_checkpoint(buffer.getvalue())


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"storages": dumps(2) + STORAGES[0]}, "storages"),
        ({"storages": dumps(1 << 40)}, "the count of rows is 1099511627776"),
        ({"storages": dumps(-1)}, "the count of rows is -1"),
        (
            {"storages": dumps(1) + storage_row(10, "Float", [1], 1 << 40)},
            "storage 1 of 1 has 1,099,511,627,776 elements",
        ),
        ({"storages": dumps(1) + storage_row(10, "Float", [1], -1)}, "storage 1 of 1 has -1 elements"),
        ({"storages": dumps(1) + dumps((1, "cpu", torch.FloatTensor)) + bytes(64)}, "is no storage class"),
        ({"storages": dumps(1) + dumps("row") + bytes(64)}, "storage 1 of 1 is described by 'row'"),
        ({"storages": dumps(0) + dumps([(1, 2, 3, 4)])}, "a view is of storage 2"),
        ({"storages": dumps(2) + b"".join(STORAGES) + dumps([(1, 10, 4, 3)])}, "the view 1 reaches past"),
        ({"storages": dumps(2) + b"".join(STORAGES) + dumps([(1, 10, -1, 3)])}, "the view 1 reaches past"),
        ({"tensors": dumps(1) + tensor_row(100, 11, [1], [1])}, "tensor 1 of 1 is over storage 11"),
        ({"tensors": dumps(1) + tensor_row(100, 10, [7], [1])}, "reaches byte 28 of storage '10', which has 24"),
        ({"tensors": dumps(1) + tensor_row(100, 10, [1] * 65, [1] * 65)}, "tensor 1 of 1 has 65 dimensions"),
        ({"tensors": dumps(1) + tensor_row(100, 10, [1], [1], -1)}, "negative"),
        ({"tensors": dumps(1) + tensor_row(100, 10, [1], [1])[:-1]}, "tensors"),
        ({"tensors": dumps(0)}, "refers to '100', which is no tensor or storage"),
        ({"pickle": b"\x80\x02}"}, "pickle"),
        ({"sys_info": b"\x80\x02}"}, "sys_info"),
    ],
)
def test_rows_that_do_not_fit(parts: dict[str, bytes], words: str) -> None:
    message = refused({**WHOLE, **parts})
    assert words in message


def test_trailing_bytes_of_members_are_noted() -> None:
    parts = {name: data + b"tail" for name, data in WHOLE.items()}
    anomalies = open_checkpoint(pack(parts)).anomalies
    assert [a.where.partition(",")[0] for a in anomalies] == ["storages", "tensors", "pickle"]
    assert {a.what for a in anomalies} == {"4 bytes follow what torch reads"}


def test_truncation_says_so() -> None:
    data = pack(WHOLE)
    start = data.index(STORAGES[1])
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(data[:start])
    assert "storages: truncated: the file ends" in str(caught.value)


def test_every_truncation_ends_in_a_description_or_an_error_of_ours() -> None:
    data = pack(WHOLE, tarfile.USTAR_FORMAT)
    whole = data.rindex(dumps([])) + len(dumps([]))
    assert assert_only_ckpt_errors(data[:whole]) == 0
    # what follows the last member is padding, which tarfile does without
    assert isinstance(open_checkpoint(data[:whole]), Checkpoint)
