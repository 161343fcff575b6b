"""The description of a checkpoint: immutable, complete, and made without reading a tensor's bytes.

Everything the formats find ends up in these types, and everything the analyses say starts from them.
File order is kept throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, Literal

from ckpt_tools.dtypes import DType
from ckpt_tools.records import comparable, record
from ckpt_tools.sources import Folder, Source

KeyPath = tuple[object, ...]
"""Where something stands inside a file: mapping keys, list indexes, attribute names."""

Role = Literal["model", "ema", "optimizer", "other"]


def is_extra_state(name: object) -> bool:
    """Whether it is the name under which a module's ``get_extra_state()`` stands among its tensors."""
    return isinstance(name, str) and name.rpartition(".")[2] == "_extra_state"


def format_path(path: KeyPath) -> str:
    """A key path as text: ``model_state_dict``, ``nets[0].encoder``."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f"{'.' if text else ''}{key}"
    return text


@record
class Storage:
    """A run of bytes in a file, compared by identity: two tensors share memory iff they name the same one.

    *nbytes* is what the checkpoint declares; *source* holds at least that from *offset*, unless *missing*
    says why not. *dtype* is that of a typed storage, None for untyped ones.
    """

    source: Source
    offset: int
    nbytes: int
    dtype: DType | None
    device: str
    key: str
    byteorder: Literal["little", "big"] = "little"
    missing: str | None = None

    def read(self, offset: int, count: int) -> bytes:
        """*count* raw bytes from byte *offset* of the storage, in the file's own byte order."""
        return self.source.read(self.offset + offset, count)


@record
class TensorInfo:
    """A tensor, described.

    *shape* and *stride* count elements; *storage_offset* counts elements from the storage's start.
    *storage* is None where no bytes stand behind the tensor (meta tensors, wrapper subclasses, sparse ones).
    *requires_grad* and *is_parameter* are None where the file does not record them.
    *layout* is torch's: strided, sparse_coo, sparse_csr, sparse_csc, sparse_bsr, sparse_bsc, nested.
    *parts* are the tensors it is made of where it is not simply strided (indices and values, scales).
    *details* has what else the file says: qscheme, scale, zero_point, axis, conj, neg, coalesced.
    *attributes* are the stray Python attributes pickled with it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    storage_offset: int = 0
    storage: Storage | None = None
    device: str = "cpu"
    requires_grad: bool | None = None
    is_parameter: bool | None = None
    layout: str = "strided"
    subclass: str | None = None
    parts: tuple[tuple[str, TensorInfo], ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    attributes: Mapping[str, object] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes its elements take when laid out densely; of its parts where it is made of parts."""
        if self.layout != "strided" or (self.storage is None and self.parts):
            return sum(part.nbytes for _, part in self.parts)
        return -(-math.prod(self.shape) // self.dtype.packed) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie densely in row-major order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1:
                if stride != expected:
                    return self.numel == 0
                expected *= size
        return True

    @property
    def extent(self) -> tuple[int, int]:
        """First and one past the last element of the storage that the tensor touches."""
        if self.numel == 0:
            return self.storage_offset, self.storage_offset
        low = high = self.storage_offset
        for size, stride in zip(self.shape, self.stride, strict=True):
            reach = (size - 1) * stride
            low, high = (low, high + reach) if reach >= 0 else (low + reach, high)
        return low, high + 1

    def storages(self) -> Iterator[Storage]:
        """The storages behind it, its parts' included."""
        if self.storage is not None:
            yield self.storage
        for _, part in self.parts:
            yield from part.storages()

    def renamed(self, name: str) -> TensorInfo:
        """The same tensor under another name."""
        if name == self.name:
            return self
        # dataclasses.replace takes three times as long, and every tensor is renamed
        return TensorInfo(
            name,
            self.dtype,
            self.shape,
            self.stride,
            self.storage_offset,
            self.storage,
            self.device,
            self.requires_grad,
            self.is_parameter,
            self.layout,
            self.subclass,
            self.parts,
            self.details,
            self.attributes,
        )


@record
class StateDict:
    """A mapping of names to tensors found in the file.

    *path* is where it stands, *entries* everything in it in file order (tensors and, rarely, other values
    such as ``_extra_state``), *metadata* torch's ``_metadata`` (module versions) where it was saved.
    """

    path: KeyPath
    role: Role
    entries: Mapping[str, object]
    metadata: Mapping[str, object] | None = None
    _tensors: tuple[TensorInfo, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tensors", None)  # `dataclasses.replace` gives those of other entries

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors among the entries under their names there, made when they are first asked for."""
        if self._tensors is None:
            found = tuple(v.renamed(k) for k, v in self.entries.items() if isinstance(v, TensorInfo))
            object.__setattr__(self, "_tensors", found)
            return found
        return self._tensors

    def __getitem__(self, name: str) -> TensorInfo:
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)


@record
class Module:
    """A pickled ``nn.Module``, read without its class.

    *class_name* is text as the file has it (``torchvision.models.resnet.ResNet``). *children*, *parameters*
    and *buffers* keep None entries, as torch does. *hyperparameters* are plain attributes (``kernel_size``,
    ``eps``), *attributes* all that was pickled. *state_dict_hints* names what may make torch's own
    ``state_dict()`` differ (hooks, overridden methods) and cannot be derived from the file.
    """

    name: str
    class_name: str
    children: Mapping[str, Module | None]
    parameters: Mapping[str, TensorInfo | None]
    buffers: Mapping[str, TensorInfo | None]
    non_persistent: frozenset[str]
    training: bool | None
    hyperparameters: Mapping[str, object]
    attributes: Mapping[str, object]
    version: int | None = None
    extra_state: object = None
    state_dict_hints: tuple[str, ...] = ()

    def walk(self) -> Iterator[tuple[str, Module]]:
        """Every module with its dotted name, parents first; one registered twice comes twice, as in torch."""
        pending: list[tuple[str, Module]] = [("", self)]
        while pending:
            prefix, module = pending.pop()
            yield prefix, module
            pending += [
                (f"{prefix}.{name}" if prefix else name, child)
                for name, child in reversed(list(module.children.items()))
                if child is not None
            ]

    def state_dict(self) -> StateDict:
        """What torch's ``model.state_dict()`` returns: same keys, same order, same tensors.

        Own parameters, own persistent buffers, extra state, then children (torch/nn/modules/module.py,
        ``_save_to_state_dict``).
        """
        entries: dict[str, object] = {}
        versions: dict[str, object] = {}
        for prefix, module in self.walk():
            dot = f"{prefix}." if prefix else ""
            versions[prefix] = {"version": 1 if module.version is None else module.version}
            for name, parameter in module.parameters.items():
                if parameter is not None:
                    entries[dot + name] = parameter
            for name, buffer in module.buffers.items():
                if buffer is not None and name not in module.non_persistent:
                    entries[dot + name] = buffer
            if module.extra_state is not None:
                entries[dot + "_extra_state"] = module.extra_state
        return StateDict((), "model", entries, versions)


@comparable
class Found:
    """A value together with the key path, or the part of the file name, that it came from."""

    value: object
    path: KeyPath
    source: Literal["content", "file name"] = "content"


@record
class ParamGroup:
    """One group of an optimizer: parameter indexes (names, where FSDP wrote it), the names that
    ``named_parameters()`` gave where they are recorded, and the options.
    """

    params: tuple[int | str, ...]
    names: tuple[str, ...] | None
    options: Mapping[str, object]


@record
class Optimizer:
    """An optimizer's ``state_dict()``: groups, and per parameter index its state (``exp_avg``, ``step``)."""

    path: KeyPath
    groups: tuple[ParamGroup, ...]
    state: Mapping[int | str, Mapping[str, object]]
    algorithm: str | None = None

    def tensors(self) -> Iterator[TensorInfo]:
        """Every tensor of the state, named ``index.key``."""
        for index, state in self.state.items():
            for key, value in state.items():
                if isinstance(value, TensorInfo):
                    yield value.renamed(f"{index}.{key}")


@record
class TrainingState:
    """What a training checkpoint says of its run, each value with where it was found."""

    epoch: Found | None = None
    step: Found | None = None
    loss: Found | None = None
    metrics: Mapping[str, Found] = field(default_factory=dict)
    lr: Found | None = None
    optimizers: tuple[Optimizer, ...] = ()
    schedulers: tuple[KeyPath, ...] = ()
    rng: tuple[KeyPath, ...] = ()
    arguments: Found | None = None


@comparable
class GlobalUse:
    """A global that a pickle names, as text.

    *opcode* is GLOBAL, STACK_GLOBAL, INST or EXT; *offset* where it first stands; *uses* what the stream
    then does: call (REDUCE, OBJ, INST), new (NEWOBJ), build, or nothing at all (it is only held).
    """

    module: str
    name: str
    opcode: str
    offset: int
    uses: frozenset[str]

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@record
class Pickle:
    """One pickle stream of the file: where it lies, and what it would make an unpickler do.

    It takes *size* bytes from *offset* of *member*. *storages* are those that it refers to. *evaluation* is what
    the pickle machine made of it (`pickles.machine.Evaluation`), *stream* what its offsets count in. Where the
    stream cannot be evaluated to its end, *problem* says why, and the rest is what came before.
    """

    member: str
    size: int
    protocol: int
    globals: tuple[GlobalUse, ...]
    root: object = None
    offset: int = 0
    storages: tuple[Storage, ...] = ()
    evaluation: Any = None
    stream: Source | None = None
    problem: str = ""


@comparable
class Anomaly:
    """Something a lenient loader would swallow: *what* is odd, and *where*."""

    what: str
    where: str = ""


@comparable
class Refusal:
    """A reason why ``torch.load(weights_only=True)`` refuses a file.

    *subject* is the dotted name of a global, or an opcode; *path* the first key path it was found at.
    """

    subject: str
    reason: str
    path: KeyPath = ()
    is_global: bool = True


@record
class Checkpoint:
    """A checkpoint file or folder, described without being executed and without tensor bytes being read.

    *format* is a format's short name (``torch_zip``), *title* the same in words; *kind* is one of
    state_dict, state_dicts, model, program, training, optimizer, tensor, tensors, archive, object. *values* is the
    inert root object. *refusals* is None where the question does not arise (safetensors, npz).
    """

    path: str
    source: Source | Folder
    format: str
    title: str
    kind: str
    state_dicts: tuple[StateDict, ...] = ()
    module: Module | None = None
    module_path: KeyPath = ()
    training: TrainingState | None = None
    values: object = None
    loose: tuple[tuple[KeyPath, TensorInfo], ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)
    pickles: tuple[Pickle, ...] = ()
    refusals: tuple[Refusal, ...] | None = None
    anomalies: tuple[Anomaly, ...] = ()
    parts: tuple[Checkpoint, ...] = ()
    size: int = 0

    @property
    def globals(self) -> tuple[GlobalUse, ...]:
        """Every global that any pickle of the file names, in file order."""
        return tuple(use for pickle in self.pickles for use in pickle.globals)

    def model_state_dict(self) -> StateDict | None:
        """The one state_dict that plainly is the model's, or None where there is none or more than one."""
        if self.module is not None and not any(s.role == "model" for s in self.state_dicts):
            return self.module.state_dict()
        models = [s for s in self.state_dicts if s.role == "model"]
        return models[0] if len(models) == 1 else None
