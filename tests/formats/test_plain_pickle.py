"""Plain pickles against pickle, torch and numpy."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import read_bytes, to_numpy
from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.plain_pickle import FORMAT
from ckpt_tools.sources import MemorySource
from tests.formats.as_torch import assert_only_ckpt_errors, assert_same_tensors, by_name

PROTOCOLS = range(6)


def detected(data: bytes) -> bool:
    assert FORMAT.detect is not None
    return FORMAT.detect(MemorySource(data, "bytes"), data[:4096])


def refused(data: bytes) -> CkptError:
    with pytest.raises(CkptError) as caught:
        open_checkpoint(data)
    return caught.value


# ------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays(protocol: int) -> None:
    value = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "column_major": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big_endian": np.array([1, 2, 3], dtype=">f8"),
        "scalar": np.array(3, dtype=np.int64),
        "empty": np.zeros((0, 3), dtype=np.uint8),
        "mask": np.array([True, False]),
        "every_byte": np.arange(256, dtype=np.uint8),
    }
    checkpoint = open_checkpoint(pickle.dumps(value, protocol))
    assert checkpoint.format == "pickle"
    found = by_name(checkpoint)
    assert list(found) == list(value)
    for name, array in value.items():
        assert found[name].subclass == "numpy.ndarray"
        assert found[name].shape == array.shape
        if array.size:
            assert found[name].stride == tuple(step // array.itemsize for step in array.strides)
        assert found[name].dtype.name == array.dtype.name
        assert to_numpy(found[name]).tolist() == array.tolist()
    assert checkpoint.producer["numpy"].startswith("2 " if hasattr(np, "_core") else "before 2 ")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_large_array_stays_in_the_file(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    array = np.arange(3_000_000, dtype="<i8") * 0x0102_0304_05
    path.write_bytes(pickle.dumps([array, "after"], protocol))
    checkpoint = open_checkpoint(path)
    assert checkpoint.values[1] == "after"
    ((_, tensor),) = checkpoint.loose
    assert isinstance(tensor, TensorInfo)
    assert tensor.storage is not None
    assert tensor.storage.nbytes == array.nbytes
    assert tensor.storage.read(8_000_000, 80) == array.tobytes()[8_000_000:8_000_080]
    # text of protocol 2 is no array's bytes as they lie
    assert (tensor.storage.source.locate(0) is None) == (protocol == 2)


# ------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors(protocol: int) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0).view(2, 3)
    value = OrderedDict(
        [
            ("weight", weight),
            ("transposed", weight.t()),
            ("slice", weight[1, 1:]),
            ("steps", torch.tensor(3)),
            ("half", torch.tensor([1.0, -2.0], dtype=torch.bfloat16)),
            ("empty", torch.empty(0, 2)),
            ("large", torch.arange(3000.0)),
        ]
    )
    data = pickle.dumps(value, protocol)
    checkpoint = open_checkpoint(data)
    assert checkpoint.kind == "state_dict"
    found = by_name(checkpoint)
    assert_same_tensors(found, pickle.loads(data))
    # pickle writes a storage anew for each tensor over it
    assert found["weight"].storage is not found["transposed"].storage
    members = [part.member for part in checkpoint.pickles]
    assert members[0] == "pickle"
    assert members[1:] == [f"storage {number}: object" for number in range(1, 8)]
    assert [str(use) for use in checkpoint.pickles[1].globals] == ["torch.FloatStorage"]


def test_parameters_and_modules() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model[0].weight.requires_grad_(False)
    checkpoint = open_checkpoint(pickle.dumps(model))
    assert checkpoint.kind == "model"
    assert checkpoint.module is not None
    found = checkpoint.module.state_dict()
    assert_same_tensors({t.name: t for t in found.tensors}, model.state_dict(keep_vars=True))
    assert [t.is_parameter for t in found.tensors][:3] == [True, True, True]


def test_torch_does_not_load_plain_pickles() -> None:
    torch = pytest.importorskip("torch")
    data = pickle.dumps({"w": torch.tensor([1.0])})
    with pytest.raises(RuntimeError, match="Invalid magic number"):
        torch.load(io.BytesIO(data), weights_only=False)
    refusals = open_checkpoint(data).refusals
    assert refusals
    assert (refusals[0].subject, refusals[0].is_global) == ("plain pickle", False)
    assert "torch.storage._load_from_bytes" in {refusal.subject for refusal in refusals}


class LoadsFromBytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        torch = pytest.importorskip("torch")
        return torch.storage._load_from_bytes, (self.data,)


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("nothing of a file is called",)


def test_bytes_for_torch_load_are_looked_into_even_if_no_tensor_is_made_of_them() -> None:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer, _use_new_zipfile_serialization=False)
    checkpoint = open_checkpoint(pickle.dumps([LoadsFromBytes(buffer.getvalue()), LoadsFromBytes(b"no file")]))
    assert [str(use) for use in checkpoint.globals] == ["torch.storage._load_from_bytes", "__builtin__.print"]
    first, second = checkpoint.anomalies
    assert "the bytes of a pickled storage hold something else" in first.what
    assert "no storage" in second.what


def test_tensor_over_bytes_that_are_no_legacy_file() -> None:
    torch = pytest.importorskip("torch")

    class Rebuilds:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (LoadsFromBytes(b"no file"), 0, (1,), (1,), False, OrderedDict())

    assert "storage 1, pickled as bytes" in str(refused(pickle.dumps({"w": Rebuilds()})))


# ------------------------------------------------------------------------------ anything else


class Custom:
    def __init__(self) -> None:
        self.rate = 0.5
        self.names = ["a", "b"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_shown_by_class(protocol: int) -> None:
    checkpoint = open_checkpoint(pickle.dumps(Custom(), protocol))
    assert checkpoint.kind == "object"
    assert checkpoint.values.class_name == f"{Custom.__module__}.Custom"
    assert checkpoint.values.attributes == {"rate": 0.5, "names": ["a", "b"]}


def test_cloudpickled_function() -> None:
    # as cloudpickle writes a lambda: a code object is built from its parts, then filled
    data = (
        b"\x80\x05\x8c\x17cloudpickle.cloudpickle\x8c\x0e_make_function\x93(\x8c\x17cloudpickle.cloudpickle"
        b"\x8c\r_builtin_type\x93\x8c\x08CodeType\x85R(K\x01K\x00C\x04d\x01S\x00tRNNtR\x8c\x05after\x86."
    )
    checkpoint = open_checkpoint(data)
    assert checkpoint.kind == "object"
    assert [str(use) for use in checkpoint.globals] == [
        "cloudpickle.cloudpickle._make_function",
        "cloudpickle.cloudpickle._builtin_type",
    ]
    assert checkpoint.values[1] == "after"


def test_joblib_dump_is_named() -> None:
    # joblib writes an array's bytes after the wrapper that describes it, between opcodes
    data = (
        b"\x80\x04\x8c\x13joblib.numpy_pickle\x8c\x11NumpyArrayWrapper\x93)\x81}(\x8c\x05shapeK\x02\x85ub"
        + b"\xff\xff\xff\xff"
        + bytes(range(200, 216))
        + b"."
    )
    error = refused(data)
    assert isinstance(error, UnsupportedFeature)
    assert "joblib" in str(error)


def test_several_pickles_back_to_back() -> None:
    first, second, third = pickle.dumps([1]), pickle.dumps(Custom()), pickle.dumps("third")
    checkpoint = open_checkpoint(first + second)
    assert checkpoint.values == [1]
    (anomaly,) = checkpoint.anomalies
    assert (anomaly.what, anomaly.where) == (
        "another pickle follows; only the first is described",
        f"byte {len(first)}",
    )
    assert [part.member for part in checkpoint.pickles] == ["pickle", "pickle 2"]
    assert checkpoint.pickles[1].size == len(second)
    assert [use.name for use in checkpoint.globals] == ["Custom"]
    several, rest = open_checkpoint(first + second + third + b"tail").anomalies
    assert several.what == "2 more pickles follow; only the first is described"
    assert (rest.what, rest.where) == ("4 bytes follow that are no pickle", f"byte {len(first + second + third)}")


# ------------------------------------------------------------------------------ what is a pickle, and what is not


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value", [{"epoch": 3, "lr": 0.5}, [1, 2], (None, True), Custom(), {1, 2}], ids=lambda v: type(v).__name__
)
def test_pickles_are_recognised(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert detected(data)
    assert open_checkpoint(data).format == "pickle"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N.",
        b"I1\n.",
        b"canyon\nvalley\n.",  # a name alone, by pickle's rules
        b"].",
        b"(.",
        b"(dp0\n.\n",
        b"(lp1\nS'a'\na.\n\nand so on",
        b"import torch\n\nmodel = torch.load('model.pt')\n",
        b"config:\n  lr: 0.1\n",
        b'{"epoch": 3}',
        b"(see the README)\n",
        b"class Model:\n    pass\n.",
        b"I am a text.",
        b"N" * 10_000 + b".",
        b"\x80",
        b"\x80\x06N.",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_is_not_recognised(data: bytes) -> None:
    assert not detected(data)
    assert isinstance(refused(data), NotACheckpoint)


def test_no_file_of_the_project_passes_for_a_pickle() -> None:
    root = Path(__file__).resolve().parents[2]
    texts = [
        path for pattern in ("ckpt_tools/**/*.py", "tests/**/*.py", "*.md", "*.toml") for path in root.glob(pattern)
    ]
    assert len(texts) > 50
    assert [path for path in texts if detected(path.read_bytes())] == []


@pytest.mark.parametrize("rest", [b"", b"0I1\n.", b"garbage"])
def test_call_in_protocol_0_is_a_pickle_whatever_follows(rest: bytes) -> None:
    call = b"cposix\nsystem\n(S'true'\ntR"
    data = call + rest if rest[:1] == b"0" else call + b"." + rest
    checkpoint = open_checkpoint(data)
    assert [(str(use), use.uses) for use in checkpoint.globals] == [("posix.system", frozenset({"call"}))]


def test_long_pickle_of_protocol_0() -> None:
    value = {f"key {number}": number for number in range(2000)}
    data = pickle.dumps(value, 0)
    assert len(data) > 3 * 4096
    checkpoint = open_checkpoint(data)
    assert checkpoint.values == value
    assert not detected(data[:-1])


def test_lone_data_pkl_is_named() -> None:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    weight = torch.zeros(4, 5)
    torch.save({"weight": weight, "transposed": weight.t(), "bias": torch.zeros(3, dtype=torch.float16)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        data = archive.read("archive/data.pkl")
    error = refused(data)
    assert isinstance(error, NotACheckpoint)
    assert (
        "the data.pkl of a torch zip archive, alone: it describes 3 tensors over 2 storages ('0', '1'), "
        "whose 86 bytes are in the archive's other members"
    ) in str(error)


# ------------------------------------------------------------------------------ hostile input


def sample(protocol: int) -> bytes:
    torch = pytest.importorskip("torch")
    return pickle.dumps({"w": torch.tensor([1.0, 2.0]), "a": np.arange(3)}, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_ends_in_an_error_of_ours(protocol: int) -> None:
    data = sample(protocol)
    assert isinstance(open_checkpoint(data), Checkpoint)
    assert assert_only_ckpt_errors(data) == 0


def test_truncated_pickle_says_so() -> None:
    error = refused(sample(4)[:-1])
    assert isinstance(error, CorruptFile)
    assert "truncated" in str(error)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mutations_end_in_a_description_or_an_error_of_ours(protocol: int) -> None:
    whole = sample(protocol)
    choose = random.Random(protocol)
    compared = 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(choose.randint(1, 4)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        try:
            for state_dict in open_checkpoint(bytes(data)).state_dicts:
                for tensor in state_dict.tensors:
                    assert len(read_bytes(tensor)) == tensor.nbytes
                    compared += 1
        except CkptError as error:
            assert str(error)
    assert compared
