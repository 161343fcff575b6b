"""The ONNX file itself: whole, and with what was asked in it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import external_data_helper, helper

from ckpt_tools.errors import CkptError, CorruptFile
from ckpt_tools.records import record
from ckpt_tools.report import count, listed, size
from ckpt_tools.sources import Folder
from ckpt_tools.verification.results import Problem

SMALL = 256
"""Bytes below which an initializer stays in the model in any case: sizes, which shape inference has to read."""

SIZES = "ckpt_tools.input"
"""The start of the keys of the metadata under which, by its name, each input stands as it was exported with."""

DIGEST = "ckpt_tools.external_data_sha256"
"""The key of the metadata under which the SHA-256 of the external data stands."""


@record
class Port:
    """An input or an output of the graph: each of *axes* a size, a name, or None where the file says neither."""

    name: str
    dtype: str
    axes: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        axes = "?" if self.axes is None else "×".join("?" if a is None else str(a) for a in self.axes) or "scalar"
        return f"{self.name} {axes} {self.dtype}"


@record
class Model:
    """An ONNX model without its external data: the *proto*, and where it lies."""

    path: str
    proto: Any

    @property
    def inputs(self) -> list[Port]:
        """What has to be fed."""
        given = {tensor.name for tensor in self.proto.graph.initializer}
        return [_port(value) for value in self.proto.graph.input if value.name not in given]

    @property
    def outputs(self) -> list[Port]:
        """What comes out."""
        return [_port(value) for value in self.proto.graph.output]

    @property
    def opset(self) -> int:
        """The version of the operators of ONNX itself."""
        return max((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)

    @property
    def metadata(self) -> dict[str, str]:
        """What stands in ``metadata_props``."""
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    def external(self) -> Iterator[tuple[Any, Any]]:
        """Each initializer that lies in another file, with where in it."""
        for tensor in self.proto.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                yield tensor, external_data_helper.ExternalDataInfo(tensor)

    def data_files(self) -> list[str]:
        """The files beside the model that its initializers lie in."""
        folder = os.path.dirname(os.path.abspath(self.path))
        return [os.path.join(folder, location) for location in dict.fromkeys(i.location for _, i in self.external())]


def read(path: str) -> Model:
    """The model in *path*. Raises `CkptError` where it is none."""
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own class, of no common base
        raise CkptError(f"is no ONNX model: {' '.join(str(error).split())}", path=path) from None
    if not proto.graph.node and not proto.graph.output:
        raise CkptError("is no ONNX model: it has neither nodes nor outputs", path=path)
    return Model(path, proto)


def dtype_name(elem_type: int) -> str:
    """``float32`` for ONNX's number of a type."""
    try:
        name = str(onnx.TensorProto.DataType.Name(elem_type)).lower()
    except ValueError:
        return f"type {elem_type}"
    return {"float": "float32", "double": "float64"}.get(name, name)


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    axes: tuple[int | str | None, ...] | None = None
    if tensor.HasField("shape"):
        axes = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
    return Port(value.name, dtype_name(tensor.elem_type), axes)


# --- whole


def damage(model: Model) -> Iterator[Problem]:
    """What is missing or cut; ``onnx.checker`` accepts a cut file of external data."""
    outside = sorted({info.location for _, info in model.external() if _is_outside(info.location)})
    if outside:
        text = f"its weights would be read from outside its folder: {listed(outside, 3)}"
        yield Problem("external-data-outside", "error", text, "Such a path reads whatever lies there: do not load it")
        return
    lengths = {path: os.path.getsize(path) if os.path.isfile(path) else None for path in model.data_files()}
    folder = os.path.dirname(os.path.abspath(model.path))
    short: dict[str, list[str]] = {}
    for tensor, info in model.external():
        path = os.path.join(folder, info.location)
        have = lengths[path]
        needed = math.prod(tensor.dims) * bits_of(tensor.data_type) // 8
        start, length = info.offset or 0, info.length if info.length is not None else needed
        if have is not None and (start + length > have or length < needed):
            short.setdefault(info.location, []).append(tensor.name)
    for path, have in lengths.items():
        name = os.path.relpath(path, folder)
        if have is None:
            yield Problem("external-data-missing", "error", f"{name}, where weights are, is not there", "Copy it along")
        elif name in short:
            message = (
                f"{name} is cut: the bytes of {count(len(short[name]), 'initializer')} ({listed(short[name], 3)}) "
            )
            yield Problem(
                "external-data-cut", "error", f"{message}are not in it ({size(have)})", "Copy it again, whole"
            )
    problem = _other_data(model) if all(have is not None for have in lengths.values()) and not short else None
    if problem is not None:
        yield problem


def _is_outside(location: str) -> bool:
    try:
        Folder("").inside(location)
    except CorruptFile:
        return True
    return False


def bits_of(data_type: int) -> int:
    """Bits of one element of ONNX's type of that number; 0 where there is none."""
    try:
        return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8
    except (KeyError, TypeError, ValueError):
        return 0


def _other_data(model: Model) -> Problem | None:
    wanted = model.metadata.get(DIGEST)
    files = model.data_files()
    if wanted is None or not files or digest_of_files(files) == wanted:
        return None
    return Problem(
        "external-data-differs",
        "error",
        f"{listed([os.path.basename(path) for path in files], 2)} is not the file that was written with this model: "
        "its SHA-256 is another",
        "Copy both files of one export",
    )


def digest_of_files(paths: Sequence[str]) -> str:
    """The SHA-256 of the bytes of *paths*, one after the other."""
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def invalid(model: Model) -> Iterator[Problem]:
    """What ``onnx.checker`` says."""
    try:
        onnx.checker.check_model(model.path)
    except Exception as error:
        text = " ".join(str(error).split())
        yield Problem("invalid-model", "error", f"onnx.checker refuses it: {text[:400]}")


def in_training(model: Model) -> Iterator[Problem]:
    """Nodes that do what they do in training: the model was exported in that mode."""
    constants = {t.name: t for t in model.proto.graph.initializer}
    for node in model.proto.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = next((a.t for a in node.attribute if a.name == "value"), None)
    found: dict[str, list[str]] = {}
    for node in model.proto.graph.node:
        if node.op_type == "BatchNormalization":
            mode = any(a.name == "training_mode" and a.i for a in node.attribute)
        elif node.op_type == "Dropout" and len(node.input) > 2:
            flag = constants.get(node.input[2])
            mode = flag is not None and bool(onnx.numpy_helper.to_array(flag).any())
        else:
            continue
        if mode:
            found.setdefault(node.op_type, []).append(node.name or node.output[0])
    for kind, names in found.items():
        what = "drops values at random" if kind == "Dropout" else "normalizes by the batch it is given"
        which = f"{count(len(names), f'node {kind}', f'nodes {kind}')} ({listed(names, 3)})"
        yield Problem(
            "training-mode",
            "error",
            f"it was exported in training mode: {which} {what}",
            "Export it in eval mode, as ckpt export does; in forward, functional.dropout needs training=self.training",
        )
