"""Every fixture reads as its manifest entry says, which is what torch (or the format's own library) says."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools import Checkpoint, CkptError, Module, TensorInfo, open_checkpoint
from ckpt_tools.contents import read_bytes, scalar
from ckpt_tools.errors import CorruptFile
from ckpt_tools.formats import FORMATS
from ckpt_tools.pickles.values import OrderedDict, plain

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ENTRIES = json.loads((FIXTURES / "MANIFEST.json").read_text(encoding="utf-8"))["fixtures"]
NAMES = {format.name for format in FORMATS}
# torch gives what is there; to us a part of a state_dict is none
INCOMPLETE = [e for e in ENTRIES if e["format"] == "sharded" and "anomaly" in e.get("facts", {})]
READ = [e for e in ENTRIES if "error" not in e and e["format"] in NAMES and e not in INCOMPLETE]
REFUSED = [e for e in ENTRIES if "error" in e]

Key = tuple[str, ...]

SPREAD = {"sharded", "distributed", "deepspeed"}
"""The formats whose state_dicts are spread over their parts, which hold no others."""

KINDS = {
    "zip/numpy.pt": "training",  # it has a loss
    "zip/numpy_1.pt": "training",
    "zip/nested_dicts.pt": "state_dicts",  # six of them
    "zip/tensor.pt": "tensor",  # just one
    "legacy/tensor.pt": "tensor",
    "numpy/arrays.npz": "state_dict",  # names of arrays
    "numpy/compressed.npz": "state_dict",
    "pickle/arrays_protocol_2.pkl": "state_dict",
    "pickle/arrays_protocol_4.pkl": "state_dict",
    "pickle/arrays_protocol_5.pkl": "state_dict",
    "pickle/tensors.pkl": "state_dict",
}
"""Where the manifest's word for the whole is its author's and not torch's, and ours is another."""


def of_entry(entry: dict[str, Any]) -> str:
    return str(entry["file"])


def each(*words: str) -> pytest.MarkDecorator:
    """For every fixture whose entry tells something of each kind of *words*, and has a reader."""
    entries = [e for e in READ if all(e.get(word) for word in words)]
    if "state_dicts" in words:
        # to torch it is some files; consolidated they are in tests/formats/test_deepspeed.py
        entries = [e for e in entries if e["format"] != "deepspeed"]
    return pytest.mark.parametrize("entry", entries, ids=of_entry)


@functools.cache
def opened(file: str) -> Checkpoint:
    """The fixture as we read it."""
    return open_checkpoint(FIXTURES / file)


def tensors_of(checkpoint: Checkpoint) -> dict[Key, TensorInfo]:
    """Every tensor that the description names, under its full path."""
    found: dict[Key, TensorInfo] = {}
    state_dicts = list(checkpoint.state_dicts)
    for state_dict in state_dicts:
        for tensor in state_dict.tensors:
            found[(*map(str, state_dict.path), tensor.name)] = tensor
    if checkpoint.module is not None:
        for tensor in checkpoint.module.state_dict().tensors:
            found[(*map(str, checkpoint.module_path), tensor.name)] = tensor
    for path, tensor in checkpoint.loose:
        found[tuple(map(str, path)) or ("",)] = tensor
    for part in () if checkpoint.format in SPREAD else checkpoint.parts:
        for path, tensor in tensors_of(part).items():
            found[(part.path.rpartition(": ")[2], *path)] = tensor
    return found


def expected_tensors(entry: dict[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The manifest's tensors, without those that only code of their class would find."""
    for state_dict in entry.get("state_dicts", ()):
        for tensor in state_dict["tensors"]:
            if not is_scalar(tensor) and not (entry.get("model") and tensor["name"].endswith("_extra_state")):
                yield (*map(str, state_dict["path"]), tensor["name"]), tensor


def is_scalar(tensor: dict[str, Any]) -> bool:
    """Whether it is a scalar of numpy, which is a number like any other to us."""
    return "array" in tensor and tensor["name"] in ("best_loss", "best_epoch", "best_acc")


@each()
def test_format_and_kind(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    assert (checkpoint.format, checkpoint.kind) == (entry["format"], KINDS.get(entry["file"], entry["kind"]))


@each("state_dicts")
def test_the_same_tensors_are_found(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    found = set(tensors_of(checkpoint))
    if entry["format"] == "torchscript":
        # torch has no list of tensors that are plain attributes
        found -= {tuple(map(str, path)) for path, _ in checkpoint.loose}
    assert sorted(found) == sorted(path for path, _ in expected_tensors(entry))


@each()
def test_numpy_scalars(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    scalars = [
        ((*state_dict["path"], tensor["name"]), tensor)
        for state_dict in entry.get("state_dicts", ())
        for tensor in state_dict["tensors"]
        if is_scalar(tensor)
    ]
    for path, expected in scalars:
        value: Any = checkpoint.values
        for key in path:
            value = plain(value[key])
        code = {"float64": "<d", "float32": "<f", "int64": "<q"}[expected["dtype"]]
        assert hashlib.sha256(struct.pack(code, value)).hexdigest() == expected["sha256"]


@each("state_dicts")
def test_state_dicts(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    found = {
        tuple(map(str, s.path)): (s.role, [t.name for t in s.tensors]) for s in checkpoint.state_dicts if s.tensors
    }
    expected = {tuple(map(str, s["path"])): s["role"] for s in entry["state_dicts"]}
    names: dict[Key, list[str]] = {}
    for path, _ in expected_tensors(entry):
        names.setdefault(path[:-1], []).append(path[-1])
    for path, values in found.items():
        role = "other" if path[-1:] == ("best_k_models",) else expected[path]  # numbers, not weights
        assert values == (role, names[path])


@each("state_dicts")
def test_tensors(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    found = tensors_of(checkpoint)
    offsets = entry.get("facts", {}).get("offsets_in_base", {})
    for path, expected in expected_tensors(entry):
        if offsets:
            # torch makes each view a storage of its own; to us it is an offset in the one that is in the file
            base = found[(*path[:-1], "base")].storage
            assert base is not None
            expected = {**expected, "storage_offset": offsets[path[-1]], "storage_bytes": base.nbytes}
        if entry["format"] == "torchscript":
            # torch has no Parameters there, only tensors that are called so
            expected = {**expected, "parameter": found[path].is_parameter}
        assert_tensor(found[path], expected, ".".join(path))


# what torch and we call the parts of a tensor
LABELS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
    "nested": ("buffer", "sizes", "strides", "offsets"),
}


def assert_tensor(tensor: TensorInfo, expected: dict[str, Any], where: str) -> None:
    """*tensor* is what the manifest says."""
    layout = expected.get("layout", "strided")
    told = {
        "dtype": tensor.dtype.name,
        "shape": list(tensor.shape),
        "stride": list(tensor.stride),
        "storage_offset": tensor.storage_offset,
        "requires_grad": bool(tensor.requires_grad),
        "parameter": bool(tensor.is_parameter),
        "layout": "wrapper" if tensor.subclass and tensor.storage is None and tensor.parts else tensor.layout,
    }
    wanted = {
        "dtype": expected["dtype"],
        "shape": expected["shape"] if expected["shape"] is not None else told["shape"],
        "stride": expected["stride"] if expected["stride"] is not None else told["stride"],
        "storage_offset": expected["storage_offset"] or 0,
        "requires_grad": bool(expected["requires_grad"]),
        "parameter": expected.get("parameter", False),
        "layout": layout,
    }
    assert told == wanted, where
    if "class_name" in expected:
        assert tensor.subclass == expected["class_name"], where
    elif "array" in expected:
        assert tensor.subclass == "numpy.ndarray", where
    else:
        assert tensor.subclass is None, where
    assert tensor.device == expected.get("device", tensor.device), where
    for bit in ("conj", "neg"):
        assert bool(tensor.details.get(bit)) == expected.get(bit, False), where
    plain = {k: v for k, v in tensor.attributes.items() if not hasattr(v, "meaning")}
    assert plain == expected.get("attributes", {}), where
    if "components" in expected:
        labels = LABELS.get(layout, [part["name"] for part in expected["components"]])
        assert [label for label, _ in tensor.parts] == list(labels), where
        for (label, part), component in zip(tensor.parts, expected["components"], strict=True):
            assert_tensor(part, component, f"{where} {label}")
    if "coalesced" in expected:
        assert tensor.details["coalesced"] == expected["coalesced"], where
    if "quantizer" in expected:
        assert_quantizer(tensor, expected["quantizer"])
    if expected["sha256"] is None:
        assert tensor.storage is None, where
    else:
        assert hashlib.sha256(read_bytes(tensor)).hexdigest() == expected["sha256"], where
        assert tensor.nbytes == len(read_bytes(tensor)), where
    if "storage_bytes" in expected:
        assert tensor.storage is not None
        assert tensor.storage.nbytes == expected["storage_bytes"], where


def assert_quantizer(tensor: TensorInfo, expected: dict[str, Any]) -> None:
    import numpy

    assert tensor.details["qscheme"] == expected["scheme"]
    if "scale" in expected:
        assert (tensor.details["scale"], tensor.details["zero_point"]) == (expected["scale"], expected["zero_point"])
        return
    assert tensor.details["axis"] == expected["axis"]
    parts = dict(tensor.parts)
    kinds = {"float64": "<f8", "float32": "<f4", "int64": "<i8"}
    for name in ("scales", "zero_points"):
        values = numpy.frombuffer(read_bytes(parts[name]), kinds[parts[name].dtype.name])
        assert values.tolist() == expected[name]


@each("state_dicts")
def test_shared_memory(entry: dict[str, Any]) -> None:
    """Two tensors name the same storage if and only if torch has them over the same memory."""
    checkpoint = opened(entry["file"])
    found = tensors_of(checkpoint)
    first: dict[object, Key] = {}
    for path, expected in expected_tensors(entry):
        storage = found[path].storage
        if storage is None or storage.nbytes == 0 or "array" in expected:
            continue
        before = first.setdefault(storage, path)
        if before is path:
            assert expected["shares_with"] is None, path
        elif before[:-1] == path[:-1]:
            assert expected["shares_with"] == before[-1], path
        else:
            assert expected["shares_with"] == ".".join(before), path


@each("metadata")
def test_metadata(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    found = checkpoint.metadata
    if isinstance(checkpoint.values, OrderedDict):
        assert isinstance(checkpoint.values.state, dict)
        found = checkpoint.values.state["_metadata"]
        for state_dict in checkpoint.state_dicts:
            assert state_dict.metadata == found
    if entry["format"] == "peft":  # which has the adapter's configuration besides
        found = {key: found[key] for key in entry["metadata"]}
    assert found == entry["metadata"]


@each("entries")
def test_entries(entry: dict[str, Any]) -> None:
    values = opened(entry["file"]).values
    if isinstance(values, dict):  # what is no pickle has no values
        assert [str(key) for key in values] == entry["entries"]
    else:
        assert values is None


@each()
def test_model(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    expected = entry.get("model")
    module = checkpoint.module
    if expected is None or expected["class_name"] is None:  # an exported program has no class
        assert module is None
        return
    assert module is not None
    assert list(map(str, checkpoint.module_path)) == list(map(str, expected["path"]))
    assert module.class_name == expected["class_name"]
    parameters = unique(p for _, m in module.walk() for p in m.parameters.values())
    buffers = unique(b for _, m in module.walk() for b in m.buffers.values())
    assert sum(p.numel for p in parameters) == expected["parameters"]
    assert sum(p.numel for p in parameters if p.requires_grad) == expected["trainable"]
    assert sum(b.numel for b in buffers) == expected["buffers"]
    names = [
        f"{prefix}.{name}".lstrip(".") for prefix, m in module.walk() for name in m.buffers if name in m.non_persistent
    ]
    assert names == expected["non_persistent"]


def unique(tensors: Any) -> list[TensorInfo]:
    """One of each parameter, as torch counts them: the same object is one, another view of its memory is not."""
    seen: dict[object, TensorInfo] = {}
    for tensor in tensors:
        if tensor is not None:
            seen.setdefault((tensor.storage or id(tensor), tensor.storage_offset, tensor.shape, tensor.stride), tensor)
    return list(seen.values())


@each("model")
def test_model_state_dict(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    state_dict = checkpoint.module.state_dict() if checkpoint.module is not None else checkpoint.model_state_dict()
    assert state_dict is not None
    # get_extra_state is code of the class, which is not in the file
    expected = [name for name in entry["model"]["keys"] if not name.endswith("_extra_state")]
    assert list(state_dict.entries) == expected


MODULES = [e for e in READ if "modules" in e.get("model", {})]


@pytest.mark.parametrize("entry", MODULES, ids=of_entry)
def test_modules(entry: dict[str, Any]) -> None:
    module = opened(entry["file"]).module
    assert module is not None
    found = [
        {
            "name": name,
            "class_name": module.class_name if entry["format"] != "torchscript" else MANGLED.sub("", module.class_name),
            "training": module.training,
            "attributes": settings_of(module) if entry["format"] != "torchscript" else {},
        }
        for name, module in module.walk()
    ]
    expected = [{**m, "class_name": MANGLED.sub("", m["class_name"])} for m in entry["model"]["modules"]]
    assert found == expected


MANGLED = re.compile(r"___torch_mangle_\d+\.")  # which torch adds anew whenever it loads


def settings_of(module: Module) -> dict[str, object]:
    """The hyperparameters as JSON has them, without what the manifest leaves out."""
    kept = {k: v for k, v in module.hyperparameters.items() if isinstance(v, str | int | float | bool | tuple)}
    return dict(json.loads(json.dumps(kept)))


@each("training")
def test_training(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    expected = entry.get("training")
    run = checkpoint.training
    assert run is not None
    for word in ("epoch", "step", "loss"):
        found = getattr(run, word)
        if word in expected:
            assert number(found.value) == expected[word]
        elif entry["file"] not in KINDS:
            assert found is None
    if "lr" in expected:
        assert [number(g.options.get("lr")) for o in run.optimizers for g in o.groups] == expected["lr"]


def number(value: object) -> object:
    """A number as the manifest has it: a tensor of one element is its value, NaN is text."""
    if isinstance(value, TensorInfo):
        value = scalar(value)
    return "nan" if isinstance(value, float) and math.isnan(value) else value


@each()
def test_optimizers(entry: dict[str, Any]) -> None:
    checkpoint = opened(entry["file"])
    run = checkpoint.training
    found = [
        {
            "path": list(optimizer.path),
            "groups": [
                {
                    **{k: number(g.options[k]) for k in ("lr", "initial_lr", "weight_decay") if k in g.options},
                    "params": list(g.params),
                    **({"param_names": list(g.names)} if g.names is not None else {}),
                }
                for g in optimizer.groups
            ],
            "state": sorted(optimizer.state),
        }
        for optimizer in (run.optimizers if run else ())
    ]
    expected = entry.get("optimizers", [])
    if entry["format"] == "distributed":  # saving made text of the keys
        expected = [{**optimizer, "state": [int(key) for key in optimizer["state"]]} for optimizer in expected]
    assert found == expected


@pytest.mark.parametrize("entry", REFUSED, ids=of_entry)
def test_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(CkptError) as caught:
        open_checkpoint(FIXTURES / entry["file"])
    assert caught.value.path == str(FIXTURES / entry["file"])
    for word in entry["error"]:
        assert word.lower() in str(caught.value).lower()


@pytest.mark.parametrize("entry", INCOMPLETE, ids=of_entry)
def test_incomplete(entry: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(FIXTURES / entry["file"])
    for word in entry["facts"]["anomaly"]:
        assert word in str(caught.value)
