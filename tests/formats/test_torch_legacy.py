"""Legacy files against torch itself."""

from __future__ import annotations

import inspect
import io
import pickle
import random
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.torch_legacy import MAGIC, PROTOCOL
from ckpt_tools.sources import MemorySource
from tests.formats.as_torch import (
    assert_only_ckpt_errors,
    assert_same_tensor,
    assert_same_tensors,
    by_name,
    dense_bytes,
)

torch = pytest.importorskip("torch")

SYS_INFO = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def save(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False, **options)
    return buffer.getvalue()


def load(data: bytes, **options: Any) -> Any:
    return torch.load(io.BytesIO(data), **{"weights_only": False, **options})


class Refers:
    """Pickles as the persistent id *pid*."""

    def __init__(self, pid: object) -> None:
        self.pid = pid


class Rebuilds:
    """Pickles as a call of *function*."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, Refers) else None


def legacy(
    value: object,
    keys: object,
    payload: bytes,
    *,
    magic: object = MAGIC,
    version: object = PROTOCOL,
    info: object = SYS_INFO,
    base: type[Any] = Pickler,
) -> bytes:
    """A legacy file made by hand."""
    buffer = io.BytesIO()
    for part in (magic, version, info, value, keys):
        base(buffer, protocol=2).dump(part)
    return buffer.getvalue() + payload


def floats(*values: float) -> bytes:
    """A storage as it lies in the file."""
    return struct.pack(f"<q{len(values)}f", len(values), *values)


def tensor_over(pid: object, offset: int, size: Sequence[int], stride: Sequence[int]) -> Rebuilds:
    return Rebuilds(
        torch._utils._rebuild_tensor_v2, Refers(pid), offset, tuple(size), tuple(stride), False, OrderedDict()
    )


def float_storage(key: object, numel: int, view: object = None, location: str = "cpu") -> tuple[object, ...]:
    return ("storage", torch.FloatStorage, key, location, numel, view)


# ------------------------------------------------------------------------------ what torch wrote


def test_state_dict_is_what_torch_loads() -> None:
    base = torch.arange(20.0)
    value = OrderedDict(
        [
            ("whole", base),
            ("slice", base[5:9]),
            ("transposed", base.view(4, 5).t()),
            ("scalar", torch.tensor(2.5, dtype=torch.float64)),
            ("empty", torch.empty(0, 3)),
            ("expanded", torch.tensor([7]).expand(4)),
            ("half", torch.tensor([1.0, -2.0], dtype=torch.float16)),
            ("brain", torch.tensor([1.0, -2.0], dtype=torch.bfloat16)),
            ("complex", torch.tensor([1 + 2j, 3 - 1j])),
            ("conjugate", torch.tensor([1 + 2j, 3 - 1j]).conj()),
            ("mask", torch.tensor([True, False])),
            ("bytes", torch.tensor([1, 255], dtype=torch.uint8)),
        ]
    )
    data = save(value)
    checkpoint = open_checkpoint(data)
    assert (checkpoint.format, checkpoint.kind, checkpoint.size) == ("torch_legacy", "state_dict", len(data))
    assert_same_tensors(by_name(checkpoint), load(data))
    assert checkpoint.refusals == ()
    assert checkpoint.anomalies == ()
    assert checkpoint.producer == {"torch": "0.4 or later (inferred from _rebuild_tensor_v2)"}
    assert [p.member for p in checkpoint.pickles] == [
        "magic number",
        "protocol version",
        "sys_info",
        "object",
        "storage keys",
    ]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickle_protocols(protocol: int) -> None:
    data = save({"a": torch.arange(3.0), "b": torch.tensor([2])}, pickle_protocol=protocol)
    checkpoint = open_checkpoint(data)
    assert_same_tensors(by_name(checkpoint), load(data))
    try:
        load(data, weights_only=True)
        taken = True
    except pickle.UnpicklingError:
        taken = False
    assert (checkpoint.refusals == ()) == taken == (protocol in (2, 3))
    subjects = [refusal.subject for refusal in checkpoint.refusals or ()]
    assert len(subjects) == len(set(subjects))


class Tiny(torch.nn.Module):
    """A module whose source the file keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)
        self.register_buffer("steps", torch.tensor(5))
        self.layer.bias.requires_grad_(False)


def test_module_with_the_source_of_its_classes() -> None:
    model = Tiny()
    data = save(model)
    checkpoint = open_checkpoint(data)
    assert checkpoint.kind == "model"
    assert checkpoint.module is not None
    assert checkpoint.module.class_name == f"{Tiny.__module__}.Tiny"
    assert checkpoint.module.children["layer"].class_name == "torch.nn.modules.linear.Linear"
    found = checkpoint.module.state_dict()
    assert_same_tensors({t.name: t for t in found.tensors}, model.state_dict(keep_vars=True))
    sources = checkpoint.metadata["sources"]
    assert list(sources) == [f"{Tiny.__module__}.Tiny", "torch.nn.modules.linear.Linear"]
    source = sources[f"{Tiny.__module__}.Tiny"]
    assert source == inspect.getsourcefile(Tiny)
    assert source.text == inspect.getsource(Tiny)
    refused = {refusal.subject for refusal in checkpoint.refusals or ()}
    assert {f"{Tiny.__module__}.Tiny", "persistent id"} <= refused


def test_source_text_too_long_to_be_held_in_memory() -> None:
    text = "class Long: pass\n" + "# …\n" * 20_000
    data = legacy([Refers(("module", Tiny, "long.py", text))], [], b"")
    (source,) = open_checkpoint(data).metadata["sources"].values()
    assert source == "long.py"
    assert source.text == text


def test_training_checkpoint() -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    data = save({"epoch": 4, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
    checkpoint = open_checkpoint(data)
    assert checkpoint.kind == "training"
    assert_same_tensors(by_name(checkpoint, "state_dict"), model.state_dict())
    assert checkpoint.training is not None
    assert checkpoint.training.epoch is not None
    assert checkpoint.training.epoch.value == 4
    (found,) = checkpoint.training.optimizers
    assert found.groups[0].options["lr"] == 0.25
    assert_same_tensor(found.state[0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize("name", ["facenet_pnet.pt", "facenet_rnet.pt", "lpips_alex.pth", "lpips_vgg.pth"])
def test_real_files(corpus: Path, name: str) -> None:
    checkpoint = open_checkpoint(corpus / name)
    expected = torch.load(corpus / name, weights_only=True, map_location="cpu")
    assert (checkpoint.format, checkpoint.kind) == ("torch_legacy", "state_dict")
    assert_same_tensors(by_name(checkpoint), expected)
    assert checkpoint.refusals == ()
    assert checkpoint.anomalies == ()


# ------------------------------------------------------------------------------ how little is read


class Counting(MemorySource):
    """Counts the bytes asked for."""

    __slots__ = ("asked",)

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "counted")
        self.asked = 0

    def peek(self, offset: int, count: int) -> bytes:
        data = super().peek(offset, count)
        self.asked += len(data)
        return data


def test_tensor_bytes_are_not_read() -> None:
    data = save({str(n): torch.zeros(100_000) for n in range(10)})
    source = Counting(data)
    checkpoint = open_checkpoint(source)
    assert len(by_name(checkpoint)) == 10
    assert source.asked < 200_000 < len(data)


def test_pickle_longer_than_the_first_piece() -> None:
    value = {f"layers.{n}.weight": torch.tensor([float(n)]) for n in range(2000)}
    data = save(value)
    source = Counting(data)
    assert_same_tensors(by_name(open_checkpoint(source)), value)
    assert data.index(b"layers.1999.weight") > 1 << 16


def test_large_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    value = {"large": torch.arange(5_000_000.0), "small": torch.tensor([3.0])}
    torch.save(value, path, _use_new_zipfile_serialization=False)
    checkpoint = open_checkpoint(path)
    found = by_name(checkpoint)
    assert_same_tensor(found["small"], value["small"])
    storage = found["large"].storage
    assert storage is not None
    assert storage.read(4_000_000 * 4, 4) == struct.pack("<f", 4_000_000)
    located = storage.source.locate(storage.offset)
    assert located is not None
    assert located[0] == str(path)
    assert path.read_bytes()[located[1] : located[1] + 8] == struct.pack("<2f", 0, 1)


# ------------------------------------------------------------------------------ what older torches wrote


def test_views_of_one_storage_share_it() -> None:
    root = float_storage("10", 10)
    value = {
        "middle": tensor_over(float_storage("10", 10, ("20", 4, 4)), 1, [2], [1]),
        "base": tensor_over(root, 0, [10], [1]),
        "tail": tensor_over(float_storage("10", 10, ("30", 7, 3)), 0, [3], [1]),
        "again": tensor_over(float_storage("10", 10, ("20", 4, 4)), 0, [2, 2], [1, 2]),
    }
    data = legacy(value, ["10"], floats(*range(10)))
    expected = load(data)
    found = by_name(open_checkpoint(data))
    assert {name: read_bytes(tensor) for name, tensor in found.items()} == {
        name: dense_bytes(tensor) for name, tensor in expected.items()
    }
    assert {name: tensor.storage_offset for name, tensor in found.items()} == {
        "middle": 5,
        "base": 0,
        "tail": 7,
        "again": 4,
    }
    (storage,) = {tensor.storage for tensor in found.values()}
    assert storage is not None
    assert (storage.nbytes, storage.key) == (40, "10")
    address = expected["base"].untyped_storage().data_ptr()
    for name, tensor in expected.items():
        assert tensor.data_ptr() - address == 4 * found[name].storage_offset


def test_tensor_reaches_past_its_view() -> None:
    value = {"a": tensor_over(float_storage("10", 10, ("20", 4, 4)), 1, [4], [1])}
    data = legacy(value, ["10"], floats(*range(10)))
    with pytest.raises(RuntimeError, match="resize"):
        load(data)
    with pytest.raises(CorruptFile, match="reaches byte 20 of storage '10', which has 16"):
        open_checkpoint(data)


def test_type_is_that_of_the_first_reference() -> None:
    value = [
        tensor_over(float_storage("1", 2), 0, [2], [1]),
        tensor_over(("storage", torch.IntStorage, "1", "cpu", 2, None), 0, [2], [1]),
    ]
    data = legacy(value, ["1"], floats(1, 2))
    expected = load(data)
    assert [str(tensor.dtype) for tensor in expected] == ["torch.float32", "torch.float32"]
    checkpoint = open_checkpoint(data)
    assert [tensor.dtype.name for _, tensor in checkpoint.loose] == ["float32", "float32"]


def test_empty_storage_takes_each_type() -> None:
    value = [
        tensor_over(float_storage("1", 0), 0, [0], [1]),
        tensor_over(("storage", torch.IntStorage, "1", "cpu", 0, None), 0, [0], [1]),
    ]
    data = legacy(value, ["1"], floats())
    expected = load(data)
    checkpoint = open_checkpoint(data)
    assert [f"torch.{tensor.dtype}" for _, tensor in checkpoint.loose] == [str(t.dtype) for t in expected]
    assert [str(t.dtype) for t in expected] == ["torch.float32", "torch.int32"]


class Python2(pickle._Pickler):
    """Writes text as the byte strings of Python 2."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_str(self, value: str) -> None:
        data = value.encode()
        self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        self.memoize(value)

    dispatch[str] = save_str

    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, Refers) else None


def test_python_2_byte_strings() -> None:
    value = {"weight": tensor_over(float_storage("140", 3, location="cuda:1"), 0, [3], [1])}
    data = legacy(value, ["140"], floats(1, 2, 3), base=Python2)
    assert b"X\x06\x00\x00\x00weight" not in data
    checkpoint = open_checkpoint(data)
    found = by_name(checkpoint)
    assert_same_tensors(found, load(data, map_location="cpu"))
    assert found["weight"].device == "cuda:1"
    assert found["weight"].storage is not None
    assert found["weight"].storage.device == "cuda:1"
    assert checkpoint.producer["python"].startswith("2 ")
    assert checkpoint.refusals == ()


def test_rebuild_tensor_of_torch_0_3() -> None:
    tensor = Rebuilds(torch._utils._rebuild_tensor, Refers(float_storage("1", 6)), 0, (3, 2), (1, 3))
    data = legacy({"w": tensor}, ["1"], floats(*range(6)))
    checkpoint = open_checkpoint(data)
    assert_same_tensors(by_name(checkpoint), load(data))
    assert checkpoint.producer == {"torch": "before 0.4 (inferred from _rebuild_tensor)"}


def test_big_endian_machines_wrote_little_endian_bytes() -> None:
    value = {"w": tensor_over(float_storage("1", 2), 0, [2], [1])}
    data = legacy(value, ["1"], floats(1, 2), info={**SYS_INFO, "little_endian": False})
    checkpoint = open_checkpoint(data)
    assert_same_tensors(by_name(checkpoint), load(data))
    assert checkpoint.producer["machine"].startswith("big-endian")


def test_untyped_storage_which_torch_saves_but_cannot_load() -> None:
    value = {"f8": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)}
    data = save(value)
    with pytest.raises(AttributeError):
        load(data)
    checkpoint = open_checkpoint(data)
    assert_same_tensors(by_name(checkpoint), value)
    assert [refusal.subject for refusal in checkpoint.refusals or ()] == ["UntypedStorage"]


def test_bare_storage() -> None:
    data = save(torch.tensor([1.0, 2.0])._typed_storage())
    checkpoint = open_checkpoint(data)
    assert checkpoint.kind == "object"
    assert checkpoint.values.read(0, 8) == struct.pack("<2f", 1, 2)


# ------------------------------------------------------------------------------ what is wrong with a file

ONE = {"w": tensor_over(float_storage("7", 2), 0, [2], [1])}
TWO = {
    "v": tensor_over(float_storage("70", 3), 0, [3], [1]),
    "w": tensor_over(float_storage("7", 2), 0, [2], [1]),
}


def refused(data: bytes) -> str:
    with pytest.raises(CkptError) as caught:
        open_checkpoint(data)
    return str(caught.value)


def test_count_that_contradicts_the_pickle() -> None:
    data = legacy(ONE, ["7"], floats(1, 2, 3))
    with pytest.raises(RuntimeError, match="wrong byte size"):
        load(data)
    message = refused(data)
    assert "storage '7' (1 of 1) has 2 elements by the pickle, but 3 by the number before its bytes" in message


def test_truncated_within_a_storage() -> None:
    data = legacy(TWO, ["7", "70"], floats(1, 2) + floats(1, 2, 3))
    assert isinstance(open_checkpoint(data), Checkpoint)
    message = refused(data[:-5])
    assert "truncated: it ends 7 bytes into storage '70' (2 of 2), 5 bytes early" in message
    message = refused(data[:-21])
    assert "truncated: it ends 7 bytes into storage '7' (1 of 2), 21 bytes early" in message
    message = refused(data[:-17])
    assert "truncated: it ends 0 bytes into storage '70' (2 of 2), 17 bytes early" in message


def test_truncated_within_each_pickle() -> None:
    data = legacy(ONE, ["7"], floats(1, 2))
    checkpoint = open_checkpoint(data)
    end = 0
    for part in checkpoint.pickles:
        end += part.size
        if part.member != "magic number":
            assert f"truncated after {end - 1} bytes, within its {part.member}" in refused(data[: end - 1])


def test_bytes_after_the_last_storage() -> None:
    data = legacy(ONE, ["7"], floats(1, 2))
    (anomaly,) = open_checkpoint(data + b"tail").anomalies
    assert (anomaly.what, anomaly.where) == ("4 bytes follow the last storage", f"byte {len(data)}")
    (anomaly,) = open_checkpoint(data + data).anomalies
    assert anomaly.what == f"{len(data)} bytes follow the last storage, beginning with another legacy file"


def test_storage_that_is_not_stored() -> None:
    data = legacy(TWO, ["7"], floats(1, 2))
    checkpoint = open_checkpoint(data)
    load(data)  # torch leaves the other one's memory as it finds it
    storage = by_name(checkpoint)["v"].storage
    assert storage is not None
    assert storage.missing == "its bytes are not in the file"
    (anomaly,) = checkpoint.anomalies
    assert anomaly.where == "storage '70'"


def test_storage_that_nothing_refers_to() -> None:
    data = legacy(ONE, ["7", "8"], floats(1, 2) + floats(1))
    with pytest.raises(AssertionError, match="not found"):
        load(data)
    assert "storage '8' is listed, but nothing refers to it" in refused(data)


def test_storage_stored_twice() -> None:
    data = legacy(ONE, ["7", "7"], floats(1, 2) + floats(3, 4))
    checkpoint = open_checkpoint(data)
    assert_same_tensors(by_name(checkpoint), load(data))
    assert "stored twice" in checkpoint.anomalies[0].what


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": 1002}, "the protocol version is 1002; torch knows only 1001"),
        ({"version": [1]}, "the protocol version is a list"),
    ],
)
def test_other_version(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        open_checkpoint(legacy(ONE, ["7"], floats(1, 2), **options))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "pid",
    [
        "7",
        ("storage", torch.FloatStorage, "7", "cpu", 2),
        ("storage", "FloatStorage", "7", "cpu", 2, None),
        ("storage", torch.FloatStorage, "7", "cpu", -2, None),
        ("storage", torch.FloatStorage, "7", "cpu", 2.0, None),
        ("storage", torch.FloatStorage, "7", "cpu", 1 << 20_000, None),
        ("storage", torch.FloatStorage, ("7",), "cpu", 2, None),
        ("storage", torch.FloatStorage, "7", "cpu", 2, ("8", 0)),
        ("storage", torch.FloatStorage, "7", "cpu", 2, ("8", 0, -1)),
        ("storage", torch.FloatTensor, "7", "cpu", 2, None),
        (),
    ],
)
def test_malformed_persistent_ids(pid: object) -> None:
    assert refused(legacy([Refers(pid)], ["7"], floats(1, 2)))


def test_deeply_nested_persistent_id_is_no_reference() -> None:
    deep: object = ()
    for _ in range(100_000):
        deep = (deep,)
    head = legacy(0, [], b"")
    nested = b"\x80\x02)" + b"\x85" * 100_000 + b"Q."
    start = head.index(b"\x80\x02K\x00.")
    assert "no reference to a storage" in refused(head[:start] + nested + head[start + 5 :])


def test_every_truncation_ends_in_an_error_of_ours(tmp_path: Path) -> None:
    data = legacy(TWO, ["7", "70"], floats(1, 2) + floats(1, 2, 3))
    assert assert_only_ckpt_errors(data) == 0
    assert assert_only_ckpt_errors(data, tmp_path, step=7) == 0


def test_mutations_end_in_a_description_or_an_error_of_ours() -> None:
    whole = legacy(TWO, ["7", "70"], floats(1, 2) + floats(1, 2, 3))
    choose = random.Random(7)
    described = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(choose.randint(1, 4)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        try:
            open_checkpoint(bytes(data))
            described += 1
        except CkptError as error:
            assert str(error)
    assert 0 < described < 2000
