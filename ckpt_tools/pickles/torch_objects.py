"""From inert calls to what they stand for: tensors, modules, containers, arrays.

Each rebuild function that torch pickles is read here as a statement about a tensor (torch/_utils.py,
torch/_tensor.py, torch/nn/parameter.py of torch 0.1 to 2.14). Calls with no entry in the table keep no
meaning; they remain visible as calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ckpt_tools.checkpoint import Module, Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME, BY_STORAGE, UINT8, DType
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.pickles import arrays
from ckpt_tools.pickles.machine import Evaluation
from ckpt_tools.pickles.values import UNSET, Budget, Call, Global, OrderedDict, PersistentId, brief, key_text, plain
from ckpt_tools.records import record
from ckpt_tools.sources import Source

MAX_NESTING = 64
"""How deep calls may be made of the results of calls: tensors of tensors, modules rebuilt from modules."""
MAX_MODULE_DEPTH = 500
"""torch itself walks modules recursively and gives up near Python's limit of 1000."""
MAX_ENTRIES = 2_000_000
"""Modules, parameters and buffers in a tree, shared ones counted each time they occur."""
MAX_NAMES = 1 << 27
"""Characters of all their dotted names together."""
MAX_PARTS = 256
"""Tensors that a tensor is made of, shared ones counted each time they occur."""
MAX_RANK = 64
"""torch's own limit on dimensions."""

_TENSOR_CLASSES = {
    f"torch.{where}{storage.removesuffix('Storage')}Tensor": dtype
    for storage, dtype in BY_STORAGE.items()
    for where in ("", "cuda.")
}


_Parts = tuple[tuple[str, TensorInfo], ...]


@record
class View:
    """A run of bytes within a storage that is used as a storage of its own; *offset* and *nbytes* are bytes."""

    storage: Storage
    offset: int
    nbytes: int
    dtype: DType | None


class Interpreter:
    """Reads the calls of one evaluated pickle.

    *persistent* says what a persistent id refers to (a `Storage`, a `View` of one, a `TensorInfo`), None
    where that needs no meaning; *stream* is the source the pickle was read from, for bytes that lie in it;
    *nested* turns the bytes given to ``torch.storage._load_from_bytes`` into a storage.
    """

    def __init__(
        self,
        persistent: Callable[[object], object],
        stream: Source,
        nested: Callable[[Source], Storage | View] | None = None,
    ) -> None:
        self._persistent = persistent
        self._stream = stream
        self._nested = nested
        # of each module's tree: entries, characters of their names, height
        self._measured: dict[int, tuple[int, int, int]] = {}
        self._open: set[int] = set()
        self._spend = Budget(0).spend
        self._encodings: dict[int, bytes | None] = {}
        self._loaded: dict[int, Storage | View] = {}

    def run(self, evaluation: Evaluation) -> object:
        """Give every persistent id and every call its meaning; returns what the root stands for."""
        self._spend = Budget(evaluation.end - evaluation.start).spend
        for reference in evaluation.persistent:
            if reference.meaning is UNSET:
                reference.meaning = self._persistent(reference.pid)
        # parents are made before the children that their state holds: children first keeps recursion flat
        for call in reversed(evaluation.calls):
            self.meaning(call)
        return plain(evaluation.root)

    def meaning(self, value: object) -> object:
        """What *value* stands for; a call or persistent id without meaning gives None, anything else itself."""
        if type(value) is PersistentId:
            if value.meaning is UNSET:
                value.meaning = self._persistent(value.pid)
            return value.meaning
        if type(value) is not Call:
            return value
        if value.meaning is UNSET:
            if len(self._open) > MAX_NESTING or id(value) in self._open:
                raise LimitExceeded(
                    "tensors or modules are nested too deep, or contain themselves", offset=value.offset
                )
            self._open.add(id(value))
            try:
                value.meaning = self._interpret(value)
            except CkptError as error:
                error.offset = value.offset if error.offset is None else error.offset
                raise
            except (TypeError, ValueError, OverflowError) as error:
                raise CorruptFile(
                    f"{value.target or 'a call'} has arguments that torch would not take ({error})",
                    offset=value.offset,
                ) from None
            finally:
                self._open.discard(id(value))
        return value.meaning

    def _interpret(self, call: Call) -> object:
        func = call.func
        reader = _READERS.get(func.path if type(func) is Global else call.target)
        if reader is not None:
            return reader(self, call)
        attributes = call.attributes
        if "_modules" in attributes and "_parameters" in attributes:
            return self._module(call.class_name, attributes)
        if call.class_name in _TENSOR_CLASSES:
            return self._old_tensor(call)
        return None

    # --- pieces

    def storage(self, value: object) -> Storage | View:
        """The storage that *value* stands for."""
        if type(value) is PersistentId and type(value.meaning) is Storage:
            return value.meaning
        for _ in range(MAX_NESTING):
            if type(value) is PersistentId:
                found = self.meaning(value)
                if isinstance(found, Storage | View):
                    return found
            elif type(value) is Call and value.target == "torch.storage._load_from_bytes" and self._nested:
                if not isinstance(value.meaning, Storage | View):
                    value.meaning = self._load_from_bytes(_arguments(value, 1)[0], self._nested)
                return value.meaning
            elif type(value) is Call and value.class_name.startswith("torch.storage.") and value.arguments:
                value = value.arguments[0]  # TypedStorage(wrap_storage, …)
                continue
            break
        raise CorruptFile("a tensor is rebuilt from what is no storage")

    def _load_from_bytes(self, value: object, nested: Callable[[Source], Storage | View]) -> Storage | View:
        """The storage in the bytes *value*, which are read once; each call makes another storage of them."""
        known = self._loaded.get(id(value))
        if known is None:
            known = self._loaded[id(value)] = nested(self._bytes(value))
            return known
        return replace(known, storage=replace(known.storage)) if isinstance(known, View) else replace(known)

    def _bytes(self, value: object) -> Source:
        self.meaning(value)
        source = arrays.byte_source(value, self._stream)
        if source is None:
            raise CorruptFile("bytes are wanted where the pickle gives something else")
        return source

    def _tensor(self, value: object) -> TensorInfo:
        meaning = self.meaning(value)
        if not isinstance(meaning, TensorInfo):
            raise CorruptFile("a tensor is wanted where the pickle gives something else")
        return meaning

    def _strided(self, args: tuple[object, ...], dtype: DType | None = None) -> TensorInfo:
        """A tensor from ``(storage, storage_offset, size, stride, …)``."""
        shape, stride = _sizes(args[2], self), _sizes(args[3], self)
        return strided(self.storage(args[0]), args[1], shape, stride, dtype)

    def _flagged(
        self, args: tuple[object, ...], dtype: DType | None, requires_grad: object, metadata: object
    ) -> TensorInfo:
        """The same with the flag, and the conj and neg bits that torch keeps in *metadata*."""
        shape, stride = _sizes(args[2], self), _sizes(args[3], self)
        details = {str(k): v for k, v in metadata.items()} if isinstance(metadata, dict) and metadata else {}
        flag = requires_grad if type(requires_grad) is bool else _flag(requires_grad)
        return strided(self.storage(args[0]), args[1], shape, stride, dtype, flag, False, details)

    # --- tensors

    def _rebuild_tensor(self, call: Call) -> TensorInfo:
        return self._strided(_arguments(call, 4))

    def _rebuild_tensor_v2(self, call: Call) -> TensorInfo:
        args = _arguments(call, 6)
        return self._flagged(args, None, args[4], args[6] if len(args) > 6 else None)

    def _rebuild_tensor_v3(self, call: Call) -> TensorInfo:
        args = _arguments(call, 7)
        return self._flagged(args, _dtype(args[6]), args[4], args[7] if len(args) > 7 else None)

    def _rebuild_parameter(self, call: Call) -> TensorInfo:
        args = _arguments(call, 2)
        state = args[3] if len(args) > 3 else None
        return replace(
            self._tensor(args[0]),
            requires_grad=_flag(args[1]),
            is_parameter=True,
            attributes=self._attributes(state),
        )

    def _attributes(self, state: object) -> dict[str, object]:
        """A ``__dict__``, or the pair of it and the slots, as text keys to meanings."""
        found: dict[str, object] = {}
        for part in state[:2] if type(state) is tuple else (state,):
            if isinstance(part, dict):
                self._spend(len(part))
                for key, value in part.items():
                    found[key_text(key)] = value
        return found

    def _parts(self, labels: tuple[str, ...], values: tuple[object, ...]) -> _Parts:
        """The plain tensors that a tensor of another layout is made of."""
        parts = tuple((label, self._tensor(value)) for label, value in zip(labels, values, strict=True))
        for label, part in parts:
            if part.layout != "strided" or part.parts:
                raise CorruptFile(f"the {label} of a tensor are themselves made of tensors")
        return parts

    def _rebuild_qtensor(self, call: Call) -> TensorInfo:
        args = _arguments(call, 6)
        tensor = self._strided(args)
        quantizer = args[4]
        if type(quantizer) is not tuple or len(quantizer) not in (3, 4):
            raise CorruptFile("a quantized tensor comes without its scale and zero point")
        scheme = quantizer[0].path.removeprefix("torch.") if type(quantizer[0]) is Global else "unknown"
        details: dict[str, object] = {"qscheme": scheme}
        parts: _Parts = ()
        if len(quantizer) == 3:
            details |= {"scale": quantizer[1], "zero_point": quantizer[2]}
        else:
            details["axis"] = quantizer[3]
            parts = self._parts(("scales", "zero_points"), quantizer[1:3])
            if parts[1][1].dtype.kind == "float":
                # torch writes per_channel_affine for both, and tells them apart by this when it loads
                details["qscheme"] = "per_channel_affine_float_qparams"
        return replace(tensor, requires_grad=_flag(args[5]), is_parameter=False, details=details, parts=parts)

    def _rebuild_sparse(self, call: Call) -> TensorInfo:
        layout, data = _arguments(call, 2)[:2]
        name = self._layout(layout)
        if type(data) is not tuple or len(data) < 3:
            raise CorruptFile("a sparse tensor comes without its parts")
        details: dict[str, object] = {}
        if name == "sparse_coo":
            labels: tuple[str, ...] = ("indices", "values")
            if len(data) > 3:
                details["coalesced"] = data[3]
        elif name in ("sparse_csr", "sparse_bsr"):
            labels = ("crow_indices", "col_indices", "values")
        elif name in ("sparse_csc", "sparse_bsc"):
            labels = ("ccol_indices", "row_indices", "values")
        else:
            raise CorruptFile(f"{name} is no sparse layout")
        if len(data) <= len(labels):
            raise CorruptFile("a sparse tensor comes without its size")
        parts = self._parts(labels, data[: len(labels)])
        values = parts[-1][1]
        return TensorInfo(
            "",
            values.dtype,
            _sizes(data[len(labels)], self),
            device=values.device,
            requires_grad=False,
            is_parameter=False,
            layout=name,
            parts=parts,
            details=details,
        )

    def _layout(self, value: object) -> str:
        return self._name(value).removeprefix("torch.")

    def _name(self, value: object) -> str:
        """A layout or a device, which pickles hold as a global, a text, or a call that gives it."""
        meaning = self.meaning(value)
        if type(meaning) is Global:
            return meaning.path
        return meaning if type(meaning) is str else brief(meaning)

    def _rebuild_nested(self, call: Call) -> TensorInfo:
        args = _arguments(call, 4)
        labels = ("buffer", "sizes", "strides", "offsets")
        parts = self._parts(labels, args[:4])
        buffer, sizes = parts[0][1], parts[1][1]
        # shapes differ from item to item; what they share is their number and rank
        return TensorInfo(
            "",
            buffer.dtype,
            buffer.shape,
            device=buffer.device,
            requires_grad=False,
            is_parameter=False,
            layout="nested",
            parts=parts,
            details={"items": sizes.shape[0] if sizes.shape else 0},
        )

    def _rebuild_meta(self, call: Call) -> TensorInfo:
        dtype, size, stride, requires_grad = _arguments(call, 4)[:4]
        shape, steps = _dimensions(size, stride, self)
        return TensorInfo(
            "",
            _dtype(dtype),
            shape,
            steps,
            device="meta",
            requires_grad=_flag(requires_grad),
            is_parameter=False,
        )

    def _rebuild_wrapper(self, call: Call) -> TensorInfo:
        args = _arguments(call, 8)
        cls, dtype, size, stride, offset, layout, device, requires_grad = args[:8]
        shape, steps = _dimensions(size, stride, self)
        return TensorInfo(
            "",
            _dtype(dtype),
            shape,
            steps,
            offset if type(offset) is int else 0,
            device=self._name(device),
            requires_grad=_flag(requires_grad),
            is_parameter=False,
            layout=self._layout(layout),
            subclass=cls.path if type(cls) is Global else "unknown",
        )

    def _rebuild_on_device(self, call: Call) -> TensorInfo:
        data, dtype, device, requires_grad = _arguments(call, 4)[:4]
        tensor = self._tensor(data)
        wanted = _dtype(dtype)
        details = {} if tensor.dtype == wanted else {"cast_to": wanted.name}
        return replace(
            tensor,
            device=self._name(device),
            requires_grad=_flag(requires_grad),
            is_parameter=False,
            subclass=None,
            details=details,
        )

    def _rebuild_jagged(self, call: Call) -> TensorInfo:
        (given,) = _arguments(call, 1)
        if not isinstance(given, dict):
            raise CorruptFile("a jagged tensor is rebuilt from what is no mapping")
        labels = tuple(key for key in ("values", "offsets", "lengths") if given.get(key) is not None)
        parts = self._parts(labels, tuple(given[label] for label in labels))
        if labels[:2] != ("values", "offsets"):
            raise CorruptFile("a jagged tensor has no values, or no offsets")
        values, offsets = parts[0][1], parts[1][1]
        return TensorInfo(
            "",
            values.dtype,
            values.shape,
            device=values.device,
            requires_grad=_flag(given.get("requires_grad", False)),
            is_parameter=False,
            layout="jagged",
            parts=parts,
            details={"items": offsets.shape[0] - 1 if offsets.shape else 0},
        )

    def _rebuild_from_type(self, call: Call) -> TensorInfo | None:
        func, cls, args, state = _arguments(call, 4)[:4]
        inner = Call(func, args, call.offset)
        if inner.target not in _READERS and self.meaning(inner) is None:
            return None  # a class of tensors that is rebuilt by a function of its own
        tensor = self._tensor(inner)
        name = cls.path if type(cls) is Global else "unknown"
        is_parameter = tensor.is_parameter
        if name in _PARAMETERS:
            is_parameter, name = True, "torch.Tensor"
        attributes = {**tensor.attributes, **self._attributes(state)}
        parts = tensor.parts
        if tensor.storage is None and not parts:
            found = ((key, self.meaning(value)) for key, value in attributes.items())
            parts = tuple((key, value) for key, value in found if isinstance(value, TensorInfo))
            _check_parts(parts)
        return replace(
            tensor,
            is_parameter=is_parameter,
            subclass=None if name == "torch.Tensor" else name,
            attributes=attributes,
            parts=parts,
        )

    def _parameter(self, call: Call) -> TensorInfo | None:
        """``Parameter`` or ``Variable``, made with its data and given the rest by BUILD, or all by BUILD."""
        state, is_parameter = call.state, call.class_name in _PARAMETERS
        data: object = call.arguments[0] if call.arguments else None
        requires_grad: object = call.arguments[1] if len(call.arguments) > 1 else is_parameter
        # torch/_tensor.py, Tensor.__setstate__
        if type(state) is tuple and len(state) == 3:  # requires_grad, volatile, hooks
            requires_grad = state[0]
        elif type(state) is tuple and len(state) == 5:  # data, gradient, hooks, requires_grad, volatile
            data, requires_grad = state[0], state[3]
        if type(state) is tuple and len(state) == 4:  # storage, offset, size, stride
            tensor: object = self._strided(state)
        else:
            tensor = self.meaning(data)
        if not isinstance(tensor, TensorInfo):
            return None
        return replace(
            tensor,
            requires_grad=_flag(requires_grad),
            is_parameter=is_parameter,
            attributes=self._attributes(state) if isinstance(state, dict) else {},
        )

    def _uninitialized(self, call: Call) -> TensorInfo:
        return TensorInfo(
            "",
            BY_NAME["float32"],
            (),
            requires_grad=True,
            is_parameter=call.class_name.endswith("Parameter"),
            subclass=call.class_name,
            details={"uninitialized": True},
        )

    def _old_tensor(self, call: Call) -> TensorInfo | None:
        """Torch < 0.2: an empty tensor, to which BUILD gives ``(storage, offset, size, stride)``."""
        if type(call.state) is tuple and len(call.state) == 4:
            return self._strided(call.state)
        if call.state is None and not call.arguments:
            return TensorInfo("", _TENSOR_CLASSES[call.class_name], (0,), (1,))
        return None

    # --- containers and scalars

    def _size(self, call: Call) -> tuple[object, ...]:
        value = call.arguments[0] if call.arguments else ()
        if not isinstance(value, list | tuple):
            return ()
        self._spend(len(value))
        return tuple(value)

    def _device(self, call: Call) -> str:
        return ":".join(key_text(part) for part in call.arguments[:2])

    def _first_argument(self, call: Call) -> object:
        return call.arguments[0] if call.arguments else None

    def _set(self, call: Call) -> object:
        items = call.arguments[0] if call.arguments else []
        if not isinstance(items, list | tuple | set | frozenset):
            return None
        return items  # a set's order and uniqueness are those of the list that pickle wrote

    def _mapping(self, call: Call) -> object:
        first = next((a for a in call.arguments if isinstance(a, dict)), {})
        self._spend(len(first))
        made = OrderedDict()
        made.update(first)
        pairs = next((a for a in call.arguments if isinstance(a, list | tuple)), ())
        if call.target != "collections.Counter":  # which would count them
            self._spend(len(pairs))
            couples = (pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2)
            made.update((key, value) for key, value in couples if type(key) is str)
        made.update(call.entries or ())  # the machine has seen to it that the keys can be hashed
        made.state = call.state
        return made

    def _complex(self, call: Call) -> complex | None:
        parts = call.arguments
        if len(parts) != 2:
            return None
        real, imaginary = parts
        if isinstance(real, int | float) and isinstance(imaginary, int | float):
            return complex(real, imaginary)
        return None

    def _encoded(self, call: Call) -> object:
        """``_codecs.encode(text, 'latin1')``: how protocol 2 writes bytes."""
        text = call.arguments[0] if call.arguments else None
        if type(text) is not str or call.arguments[1:] not in (("latin1",), ("latin-1",)):
            return None
        if id(text) not in self._encodings:  # the same text may be encoded many times
            try:
                self._encodings[id(text)] = text.encode("latin-1")
            except UnicodeEncodeError:
                self._encodings[id(text)] = None
        return self._encodings[id(text)]

    # --- numpy

    def _array(self, call: Call) -> object:
        given = call.state if type(call.state) is tuple else call.arguments
        for value in given[:5]:
            self.meaning(value)
        return arrays.array(call, self._stream)

    def _scalar(self, call: Call) -> object:
        return arrays.scalar(call)

    # --- modules

    def _compiled(self, call: Call) -> Module | None:
        """``torch.compile(model)``: rebuilt from the original module and a context."""
        original = self.meaning(call.arguments[0]) if call.arguments else None
        if not isinstance(original, Module):
            return None
        attributes = {"_modules": {"_orig_mod": original}, "_parameters": {}, "training": original.training}
        return self._module(call.class_name, attributes)

    def _graph_module(self, call: Call) -> Module | None:
        """``torch.fx.GraphModule``: rebuilt from its ``__dict__`` and generated source."""
        body = call.arguments[0] if call.arguments else None
        if isinstance(body, dict) and "_modules" in body:
            return self._module("torch.fx.graph_module.GraphModule", body)
        return None

    def _module(self, class_name: str, attributes: Mapping[Any, object]) -> Module:
        """A module from its ``__dict__``, with its children, which are made first."""
        self._spend(len(attributes))
        hints = _hints(class_name, attributes)
        parameters = self._tensors(attributes, "_parameters", class_name, hints)
        buffers = self._tensors(attributes, "_buffers", class_name, hints)
        children: dict[str, Module | None] = {}
        entries, height = 1 + len(parameters) + len(buffers), 0
        names = sum(map(len, parameters)) + sum(map(len, buffers))
        for name, value in self._mapping_of(attributes, "_modules").items():
            child = self.meaning(value)
            if type(value) is Call and not isinstance(child, Module | TensorInfo):
                child = self._opaque(value)
            if isinstance(child, Module):
                below, letters, levels = self._measured[id(child)]
                entries, names, height = entries + below, names + letters + below * len(name), max(height, levels)
            elif child is not None:
                raise CorruptFile(f"the submodule {brief(name)} of a {class_name} is no module")
            children[name] = child
        if entries > MAX_ENTRIES or names > MAX_NAMES or height >= MAX_MODULE_DEPTH:
            raise LimitExceeded(
                f"the modules form a tree of {entries:,} modules and tensors with names of {names:,} letters, "
                f"{height + 1} levels deep, which torch could not walk"
            )
        training = attributes.get("training")
        module = Module(
            "",
            class_name,
            children,
            parameters,
            buffers,
            self._names(attributes.get("_non_persistent_buffers_set")),
            training if isinstance(training, bool) else None,
            {k: v for k, v in attributes.items() if _is_hyperparameter(k, v)},
            {k: v for k, v in attributes.items() if type(k) is str and k not in _STRUCTURE},
            _version(class_name, attributes),
            state_dict_hints=tuple(hints),
        )
        self._measured[id(module)] = (entries, names, height + 1)
        return module

    def _names(self, value: object) -> frozenset[str]:
        """A set of names; protocol 2 makes it of a list."""
        items = self.meaning(value)
        if not isinstance(items, set | frozenset | list | tuple):
            return frozenset()
        self._spend(len(items))
        return frozenset(item for item in items if type(item) is str)

    def _opaque(self, call: Call) -> Module:
        """A submodule that only its own code could rebuild."""
        hint = f"{call.class_name or 'a call'} is rebuilt by code of its own, so that what it holds is unknown"
        module = Module("", call.class_name, {}, {}, {}, frozenset(), None, {}, {}, state_dict_hints=(hint,))
        self._measured[id(module)] = (1, 0, 1)
        return module

    def _tensors(
        self, attributes: Mapping[Any, object], key: str, class_name: str, hints: list[str]
    ) -> dict[str, TensorInfo | None]:
        found: dict[str, TensorInfo | None] = {}
        for name, value in self._mapping_of(attributes, key).items():
            meaning = self.meaning(value)
            if isinstance(meaning, TensorInfo):
                found[name] = meaning.renamed(name)
            elif value is None:
                found[name] = None
            elif type(value) is Call:
                hints.append(f"{brief(name)} in {key} is a {value.class_name or 'call'}, which cannot be read")
            else:
                raise CorruptFile(f"{brief(name)} in {key} of a {class_name} is no tensor")
        return found

    def _mapping_of(self, attributes: Mapping[Any, object], key: str) -> dict[str, object]:
        value = plain(attributes.get(key, {}))
        if not isinstance(value, dict):
            raise CorruptFile(f"a module's {key} is no mapping")
        self._spend(len(value))
        return {key_text(name): item for name, item in value.items()}


# --- helpers that need no interpreter


def strided(
    storage: Storage | View,
    offset: object,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: DType | None = None,
    requires_grad: bool | None = None,
    is_parameter: bool | None = None,
    details: Mapping[str, object] | None = None,
) -> TensorInfo:
    """A tensor over *storage*, from element *offset* on; *dtype* is the storage's own unless given.

    *stride* has nothing below 0. Raises `CorruptFile` where the tensor does not lie in the storage.
    """
    if type(offset) is not int or not 0 <= offset < 1 << 63 or len(shape) != len(stride):
        raise CorruptFile(f"a tensor of shape {shape} has the stride {stride} and the offset {brief(offset)}")
    found = dtype or storage.dtype or UINT8
    start = 0
    if type(storage) is View:
        whole = storage.storage
        start, rest = divmod(storage.offset, found.itemsize)
        if rest:
            raise UnsupportedFeature(
                f"a view of storage {whole.key!r} begins at byte {storage.offset:,}, within an element of {found.name}"
            )
    else:
        assert type(storage) is Storage
        whole = storage
    end = offset + 1
    for size, step in zip(shape, stride, strict=True):
        end += (size - 1) * step
    needed = -(-end // found.packed) * found.itemsize
    if needed > storage.nbytes and 0 not in shape:
        raise CorruptFile(
            f"a tensor of shape {shape} reaches byte {needed:,} of storage {whole.key!r}, which has {storage.nbytes:,}"
        )
    return TensorInfo(
        "",
        found,
        shape,
        stride,
        start + offset,
        whole,
        whole.device,
        requires_grad,
        is_parameter,
        details={} if details is None else details,
    )


def _arguments(call: Call, least: int) -> tuple[Any, ...]:
    args = call.args
    if type(args) is not tuple or len(args) < least:
        args = call.arguments
        raise CorruptFile(f"{call.target} is given {len(args)} arguments where it takes {least}")
    return args


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else bool(value) if isinstance(value, int) else None


def _dtype(value: object) -> DType:
    name = value.path.removeprefix("torch.") if type(value) is Global else ""
    if name not in BY_NAME:
        raise CorruptFile(f"{name or 'something'} is no dtype")
    return BY_NAME[name]


def _sizes(value: object, interpreter: Interpreter) -> tuple[int, ...]:
    """A shape or stride: whole numbers, none of them negative, no more of them than torch takes."""
    if type(value) is Call:
        value = interpreter.meaning(value)
    if type(value) is not tuple and not isinstance(value, list):
        raise CorruptFile("a shape or stride is no tuple")
    if len(value) > MAX_RANK:
        raise LimitExceeded(f"a tensor of {len(value)} dimensions, where torch takes {MAX_RANK}")
    for size in value:
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise CorruptFile(f"{brief(size)} is no size or stride")
    return tuple(value)


def _dimensions(size: object, stride: object, interpreter: Interpreter) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape, steps = _sizes(size, interpreter), _sizes(stride, interpreter)
    if len(shape) != len(steps):
        raise CorruptFile(f"a tensor of shape {shape} has the stride {steps}")
    return shape, steps


def _check_parts(parts: _Parts) -> None:
    """Refuse a tensor of tensors of tensors that is small in the file and without end to walk."""
    pending, count = [part for _, part in parts], 0
    while pending:
        count += 1
        if count > MAX_PARTS:
            raise LimitExceeded(f"a tensor is made of more than {MAX_PARTS} tensors")
        pending += [part for _, part in pending.pop().parts]


def _is_hyperparameter(name: object, value: object) -> bool:
    """Whether an attribute is a plain setting, as layers have them: a number, a word, or a few of these."""
    if type(name) is not str or name.startswith("_") or name in _STRUCTURE:
        return False
    if isinstance(value, tuple | list):
        return 0 < len(value) <= 16 and all(isinstance(v, _SCALARS) for v in value)
    return isinstance(value, _SCALARS)


def _version(class_name: str, attributes: Mapping[Any, object]) -> int | None:
    """The module's version; None where only its class would know."""
    own = attributes.get("_version")
    return (
        own if isinstance(own, int) else _VERSIONS.get(class_name, 1 if class_name.startswith(_KNOWN_CLASSES) else None)
    )


def _hints(class_name: str, attributes: Mapping[Any, object]) -> list[str]:
    """What may make torch's own state_dict() differ from the one derived here."""
    hints = []
    hooks = plain(attributes.get("_state_dict_hooks"))
    if isinstance(hooks, dict):
        for hook in hooks.values():
            name = hook.class_name if isinstance(hook, Call) else getattr(hook, "path", "of unknown name")
            if name not in _HARMLESS_HOOKS:
                hints.append(f"state_dict hook {name}")
    if class_name.startswith(_OWN_STATE_DICT):
        hints.append(f"{class_name} writes its own state_dict")
    return hints


_SCALARS = (bool, int, float, str, type(None))
_STRUCTURE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"})
# torch/nn/utils/spectral_norm.py: the hook adds a version to the metadata, no key
_HARMLESS_HOOKS = frozenset({"torch.nn.utils.spectral_norm.SpectralNormStateDictHook"})
# packed weights are unpacked by _save_to_state_dict, which is code (torch/ao/nn/quantized)
_OWN_STATE_DICT = ("torch.ao.nn.quantized.", "torch.nn.quantized.", "torch.nn.intrinsic.quantized.")
# class attributes, which a pickle does not hold, and 1 in all other classes of torch 2.14 and torchvision 0.29
_VERSIONS = {
    **{
        f"torch.nn.modules.{where}": 2
        for where in (
            *(f"batchnorm.{name}" for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")),
            *(f"instancenorm.InstanceNorm{n}d" for n in (1, 2, 3)),
        )
    },
    **{
        f"torchvision.{where}": 2
        for where in (
            "models._utils.IntermediateLayerGetter",
            "models.densenet._DenseBlock",
            "models.detection.mask_rcnn.MaskRCNNHeads",
            "models.detection.retinanet.RetinaNetClassificationHead",
            "models.detection.retinanet.RetinaNetRegressionHead",
            "models.detection.rpn.RPNHead",
            "models.mnasnet.MNASNet",
            "models.quantization.mobilenetv3.QuantizableSqueezeExcitation",
            "models.vision_transformer.MLPBlock",
            "ops.feature_pyramid_network.FeaturePyramidNetwork",
        )
    },
}
_KNOWN_CLASSES = ("torch.", "torchvision.")
_PARAMETERS = frozenset({"torch.nn.parameter.Parameter", "torch.nn.Parameter"})

_Reader = Callable[[Interpreter, Call], object]
_READERS: dict[str, _Reader] = {
    "torch._utils._rebuild_tensor": Interpreter._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": Interpreter._rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": Interpreter._rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": Interpreter._rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": Interpreter._rebuild_parameter,
    "torch._utils._rebuild_qtensor": Interpreter._rebuild_qtensor,
    "torch._utils._rebuild_sparse_tensor": Interpreter._rebuild_sparse,
    "torch._utils._rebuild_sparse_csr_tensor": Interpreter._rebuild_sparse,
    "torch._utils._rebuild_nested_tensor": Interpreter._rebuild_nested,
    "torch.nested._internal.nested_tensor._rebuild_njt": Interpreter._rebuild_jagged,
    "torch._utils._rebuild_meta_tensor_no_storage": Interpreter._rebuild_meta,
    "torch._utils._rebuild_wrapper_subclass": Interpreter._rebuild_wrapper,
    "torch._utils._rebuild_device_tensor_from_numpy": Interpreter._rebuild_on_device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": Interpreter._rebuild_on_device,
    "torch._utils._rebuild_xla_tensor": Interpreter._rebuild_on_device,
    "torch._tensor._rebuild_from_type_v2": Interpreter._rebuild_from_type,
    "torch._tensor._rebuild_from_type": Interpreter._rebuild_from_type,
    "torch.tensor._rebuild_from_type": Interpreter._rebuild_from_type,
    "torch.nn.parameter.Parameter": Interpreter._parameter,
    "torch.autograd.variable.Variable": Interpreter._parameter,
    "torch.nn.parameter.UninitializedParameter": Interpreter._uninitialized,
    "torch.nn.parameter.UninitializedBuffer": Interpreter._uninitialized,
    "torch.Size": Interpreter._size,
    "torch.device": Interpreter._device,
    "torch.serialization._get_layout": Interpreter._first_argument,
    "builtins.set": Interpreter._set,
    "builtins.frozenset": Interpreter._set,
    "builtins.bytearray": Interpreter._first_argument,
    "builtins.complex": Interpreter._complex,
    "_codecs.encode": Interpreter._encoded,
    "collections.Counter": Interpreter._mapping,
    "collections.defaultdict": Interpreter._mapping,
    "builtins.dict": Interpreter._mapping,
    "numpy.core.multiarray._reconstruct": Interpreter._array,
    "numpy._core.multiarray._reconstruct": Interpreter._array,
    "numpy.core.numeric._frombuffer": Interpreter._array,
    "numpy._core.numeric._frombuffer": Interpreter._array,
    "numpy.core.multiarray.scalar": Interpreter._scalar,
    "numpy._core.multiarray.scalar": Interpreter._scalar,
    "torch._dynamo.eval_frame.OptimizedModule": Interpreter._compiled,
    "torch.fx.graph_module.reduce_graph_module": Interpreter._graph_module,
}
