"""What stands for a weight while a model is trained, made into the weight that its layer computes with.

- pruning (torch/nn/utils/prune.py): ``weight_orig`` × ``weight_mask``;
- weight_norm (torch/nn/utils/weight_norm.py: ``weight_g``, ``weight_v``; torch/nn/utils/parametrizations.py:
  ``parametrizations.weight.original0``, ``original1``): v · g / ‖v‖, the norm over all axes in which g has size 1;
- spectral_norm (torch/nn/utils/spectral_norm.py: ``weight_orig``, ``weight_u``, ``weight_v``; the parametrization:
  ``parametrizations.weight.original``, ``0._u``, ``0._v``): W / (uᵀ W v), as in evaluation, with the u and v saved.

One may stand on another: the mask of a ``weight_v`` is applied first. A pruned tensor is torch's, bit for bit. The
others are computed in float64 and rounded once, so they are within one unit in the last place of what the formula
gives, and as far from torch's own result as torch, which sums in the tensor's type, is from that.

A state_dict does not name the class of a parametrization: weight_norm and spectral_norm are inferred from the names
and shapes of what they save. All others, orthogonal among them, save nothing or not enough to compute the weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ckpt_tools.checkpoint import Module, TensorInfo
from ckpt_tools.contents import chunks, identity, numpy_dtype
from ckpt_tools.convert.computed import computed
from ckpt_tools.errors import UnsupportedFeature
from ckpt_tools.pickles.values import Call, plain
from ckpt_tools.report import count, listed

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

ELEMENTS = 1 << 17
"""Elements computed at a time."""
ALIGNED = 0.1
"""How far from 1 the cosine may be by which the axis of a spectral norm is told from others of the same size; these
are to be ten times as far.

Each step of training makes u = W v / ‖W v‖ or v = Wᵀ u / ‖Wᵀ u‖; what the optimizer changes afterwards is little."""

_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
_PARAMETRIZED = re.compile(r"((?:.*?\.)??)parametrizations\.([^.]+)\.(.+)", re.DOTALL)
_SPECTRAL_NORM = "torch.nn.utils.spectral_norm.SpectralNorm"


@dataclass(frozen=True, slots=True)
class Baked:
    """A weight that was made: its *name*, by what *method*, of which *parts*; *basis* is how that is known."""

    name: str
    method: str
    parts: tuple[str, ...]
    basis: str


class _Cannot(Exception):
    """Why something cannot be baked."""


_Recipe = tuple[Baked, Callable[[], TensorInfo]]


def bake(tensors: Sequence[TensorInfo], module: Module | None = None) -> tuple[list[TensorInfo], list[Baked]]:
    """*tensors* with every weight in the place of its parts, and the list of those; no bytes are computed yet.

    *module*, where the file has one, tells what names cannot. Bytes are read only where the axis of a spectral norm
    must be found out. Raises `UnsupportedFeature` that names what cannot be baked.
    """
    current = {tensor.name: tensor for tensor in tensors}
    made: dict[object, TensorInfo] = {}
    baked: list[Baked] = []
    refused: list[str] = []
    for step in (_pruned, _spectral_normed, _weight_normed, _parametrized):
        order = {name: position for position, name in enumerate(current)}
        placed: dict[str, TensorInfo] = {}
        consumed: set[str] = set()
        for name, recipe in step(current, module):
            try:
                story, make = recipe()
                if name in current:
                    raise _Cannot("a tensor of that name is there already")
                # names that share all their parts share the weight
                key = (story.method, *(identity(current[part]) for part in story.parts))
                if key not in made:
                    made[key] = make()
            except _Cannot as error:
                refused.append(f"{name} ({error})")
                continue
            baked.append(story)
            consumed.update(story.parts)
            placed[min(story.parts, key=order.__getitem__)] = made[key].renamed(name)
        following: dict[str, TensorInfo] = {}
        for name, tensor in current.items():
            if name in placed:
                following[placed[name].name] = placed[name]
            elif name not in consumed:
                following[name] = tensor
        current = following
    if refused:
        raise UnsupportedFeature(
            f"{count(len(refused), 'weight')} cannot be baked: {listed(refused)}",
            remedy="Leave out what they are made of with --drop GLOB, or bake where the class is: "
            "torch.nn.utils.parametrize.remove_parametrizations",
        )
    return list(current.values()), baked


def bare_versions(versions: Mapping[str, object], baked: Iterable[Baked]) -> Mapping[str, object]:
    """The module *versions* without those of what was baked: parametrizations, and spectral_norm's own."""
    gone = set()
    plain_modules = set()
    for story in baked:
        owner, _, leaf = story.name.rpartition(".")
        plain_modules.add(owner)
        if "parametrizations." in story.parts[0]:
            dot = f"{owner}." if owner else ""
            gone |= {f"{dot}parametrizations.{leaf}", f"{dot}parametrizations.{leaf}.0"}
    kept: dict[str, object] = {}
    for name, version in versions.items():
        if name not in gone:
            own = name in plain_modules and isinstance(version, dict)
            kept[name] = {k: v for k, v in version.items() if k != "spectral_norm"} if own else version  # type: ignore[attr-defined]
    holders = {name.rpartition(".")[0] for name in gone}
    left = {name.rpartition(".")[0] for name in kept}
    return {name: version for name, version in kept.items() if name not in holders or name in left}


# --- what is found by its names

_Found = Iterator[tuple[str, Callable[[], _Recipe]]]
_Tensors = Mapping[str, TensorInfo]


def _pruned(tensors: _Tensors, module: Module | None) -> _Found:
    for name in tensors:
        base = name.removesuffix("_mask")
        if base != name and f"{base}_orig" in tensors:
            yield base, partial(_pruning, tensors, base)


def _pruning(tensors: _Tensors, name: str) -> _Recipe:
    orig, mask = tensors[f"{name}_orig"], tensors[f"{name}_mask"]
    if orig.shape != mask.shape:
        raise _Cannot(f"its mask has the shape {list(mask.shape)}, the weight {list(orig.shape)}")
    if orig.dtype.name not in _FLOATS and orig.dtype.name not in ("complex64", "complex128"):
        raise _Cannot(f"{orig.dtype} is not multiplied")
    _check(orig, mask)
    story = Baked(name, "pruning", (orig.name, mask.name), "named as torch.nn.utils.prune does")
    return story, lambda: computed(name, orig.dtype, orig.shape, partial(_masked, orig, mask))


def _spectral_normed(tensors: _Tensors, module: Module | None) -> _Found:
    bases = [name.removesuffix("_orig") for name in tensors if name.endswith("_orig")]
    bases = [base for base in bases if f"{base}_u" in tensors]
    modules = dict(module.walk()) if module is not None and bases else {}
    for base in bases:
        yield base, partial(_old_spectral_norm, tensors, base, modules)


def _old_spectral_norm(tensors: _Tensors, name: str, modules: Mapping[str, Module]) -> _Recipe:
    if f"{name}_v" not in tensors:
        raise _Cannot("spectral_norm of torch before 1.1, which saved no v")
    parts = (f"{name}_orig", f"{name}_u", f"{name}_v")
    return _spectral_norm(tensors, name, parts, _recorded_axis(modules, name))


def _weight_normed(tensors: _Tensors, module: Module | None) -> _Found:
    for name in tensors:
        base = name.removesuffix("_g")
        # so short a name may mean something else, so that the shapes must fit as well
        if base != name and f"{base}_v" in tensors and _is_norm_of(tensors[name], tensors[f"{base}_v"]):
            yield base, partial(_weight_norm, tensors, base, (name, f"{base}_v"))


def _parametrized(tensors: _Tensors, module: Module | None) -> _Found:
    groups: dict[str, dict[str, str]] = {}
    for name in tensors:
        found = _PARAMETRIZED.fullmatch(name)
        if found is not None:
            groups.setdefault(f"{found[1]}{found[2]}", {})[found[3]] = name
    for name, parts in groups.items():
        yield name, partial(_parametrization, tensors, name, parts)


def _parametrization(tensors: _Tensors, name: str, parts: Mapping[str, str]) -> _Recipe:
    if parts.keys() == {"original0", "original1"}:
        g, v = parts["original0"], parts["original1"]
        if _is_norm_of(tensors[g], tensors[v]):
            return _weight_norm(tensors, name, (g, v))
    if parts.keys() == {"original", "0._u", "0._v"}:
        return _spectral_norm(tensors, name, (parts["original"], parts["0._u"], parts["0._v"]), None)
    if parts.keys() == {"original"}:
        raise _Cannot("a parametrization of which the file has only the original: it does not say what it computes")
    raise _Cannot(f"a parametrization that is neither weight_norm nor spectral_norm: it has {listed(list(parts))}")


def _weight_norm(tensors: _Tensors, name: str, parts: tuple[str, str]) -> _Recipe:
    g, v = (tensors[part] for part in parts)
    if v.dtype.name not in _FLOATS or g.dtype != v.dtype:
        raise _Cannot(f"a weight_norm of {v.dtype} with a norm of {g.dtype}")
    _check(g, v)
    story = Baked(name, "weight_norm", parts, "inferred from names and shapes")
    return story, lambda: computed(name, v.dtype, v.shape, partial(_scaled, g, v))


def _is_norm_of(g: TensorInfo, v: TensorInfo) -> bool:
    """Whether *g* has the shape of the norms of *v*: along one axis, or of all of it."""
    if g.numel == 1:
        return len(g.shape) in (0, 1, len(v.shape))
    if len(g.shape) != len(v.shape) or sum(size != 1 for size in g.shape) > 1:
        return False
    return all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))


def _spectral_norm(tensors: _Tensors, name: str, parts: tuple[str, str, str], recorded: int | None) -> _Recipe:
    weight, u, v = (tensors[part] for part in parts)
    if weight.dtype.name not in _FLOATS or not u.dtype == v.dtype == weight.dtype:
        raise _Cannot(f"a spectral_norm of {weight.dtype} with vectors of {u.dtype} and {v.dtype}")
    _check(weight, u, v)
    axes = [axis for axis, size in enumerate(weight.shape) if u.shape == (size,) and v.numel * size == weight.numel]
    basis = "inferred from names and shapes"
    if recorded is not None and recorded % max(len(weight.shape), 1) in axes:
        axes, basis = [recorded % len(weight.shape)], "recorded in the module"
    if not axes or not weight.numel:
        raise _Cannot(
            f"a spectral_norm of shape {list(weight.shape)} with vectors of {u.numel:,} and {v.numel:,} elements"
        )
    if len(axes) > 1:
        axes, basis = [_likely_axis(weight, u, v, axes)], "inferred from names, shapes and values"
    story = Baked(name, "spectral_norm", parts, basis)
    return story, lambda: computed(name, weight.dtype, weight.shape, partial(_divided, weight, u, v, axes[0]))


def _recorded_axis(modules: Mapping[str, Module], name: str) -> int | None:
    """The axis that the hook of a pickled module keeps."""
    owner, _, leaf = name.rpartition(".")
    hooks = plain(modules[owner].attributes.get("_forward_pre_hooks")) if owner in modules else None
    for hook in hooks.values() if isinstance(hooks, dict) else ():
        if isinstance(hook, Call) and hook.class_name == _SPECTRAL_NORM and hook.attributes.get("name") == leaf:
            axis = hook.attributes.get("dim")
            return axis if type(axis) is int else None
    return None


def _likely_axis(weight: TensorInfo, u: TensorInfo, v: TensorInfo, axes: Sequence[int]) -> int:
    """The one of *axes*, all of the size of *u*, along which u and v are about the singular vectors that they are."""
    import numpy

    left, right = _whole(u), _whole(v)
    apart: list[float] = []
    sigmas: list[float] = []
    for axis in axes:
        # the hook computes u last, of v; the parametrization v, of u
        image, back = _image(weight, v, axis), _image(weight, u, axis, back=True)
        sigmas.append(float((left * image).sum()))
        apart.append(1 - max(_cosine(left, image), _cosine(right, back)))
    nearest, *others = sorted(apart)
    if nearest < ALIGNED and 10 * nearest < others[0]:
        return axes[apart.index(nearest)]
    if numpy.allclose(sigmas, sigmas[0], rtol=1e-12, atol=0):
        return axes[0]
    named = " and ".join(map(str, axes))
    raise _Cannot(f"a spectral_norm that may be along the axes {named}, which have the same size")


def _check(*parts: TensorInfo) -> None:
    for part in parts:
        if part.storage is None or part.layout != "strided" or part.storage.missing:
            raise _Cannot(f"the bytes of {part.name} are not in the file")


# --- what is computed


def _arrays(tensor: TensorInfo) -> Iterator[Array]:
    """The elements of *tensor* in row-major order, `ELEMENTS` at a time."""
    import numpy

    dtype, wanted = numpy_dtype(tensor.dtype), ELEMENTS * tensor.dtype.itemsize
    held = bytearray()
    for chunk in chunks(tensor):
        held += chunk
        while len(held) >= wanted:
            yield numpy.frombuffer(bytes(held[:wanted]), dtype)
            del held[:wanted]
    if held:
        yield numpy.frombuffer(bytes(held), dtype)


def _whole(tensor: TensorInfo) -> Array:
    """All elements of a vector in float64."""
    import numpy

    return numpy.concatenate([numpy.zeros(0), *(array.astype(numpy.float64) for array in _arrays(tensor))])


def _along(tensor: TensorInfo, axis: int | None) -> Iterator[tuple[Array, Array, Array]]:
    """The elements of *tensor* in float64, a run at a time, each with its index along *axis* and its column.

    The column counts the others in row-major order: the matrix that torch makes with *axis* to the front. With no
    axis there is one row.
    """
    import numpy

    rows = 1 if axis is None else tensor.shape[axis]
    inner = tensor.numel // rows
    for size in tensor.shape[: 0 if axis is None else axis]:
        inner //= size
    start = 0
    for array in _arrays(tensor):
        position = numpy.arange(start, start + len(array))
        block, within = numpy.divmod(position, inner)
        outer, row = numpy.divmod(block, rows)
        yield array.astype(numpy.float64), row, outer * inner + within
        start += len(array)


def _masked(orig: TensorInfo, mask: TensorInfo) -> Iterator[bytes]:
    import numpy

    with numpy.errstate(all="ignore"):
        for values, kept in zip(_arrays(orig), _arrays(mask), strict=True):
            yield (kept.astype(values.dtype) * values).tobytes()


def _scaled(g: TensorInfo, v: TensorInfo) -> Iterator[bytes]:
    import numpy

    axis = next((axis for axis, size in enumerate(g.shape) if size != 1), None) if g.numel > 1 else None
    dtype = numpy_dtype(v.dtype)
    squares = numpy.zeros(g.numel)
    if not v.numel:
        return
    with numpy.errstate(all="ignore"):
        for values, row, _ in _along(v, axis):
            _add(squares, row, values * values)
        scale = _whole(g) / numpy.sqrt(squares)
        for values, row, _ in _along(v, axis):
            yield (values * scale[row]).astype(dtype).tobytes()


def _image(weight: TensorInfo, vector: TensorInfo, axis: int, *, back: bool = False) -> Array:
    """W v, of the weight as a matrix whose rows lie along *axis*; Wᵀ u for *back*."""
    import numpy

    given = _whole(vector)
    rows = weight.shape[axis]
    image = numpy.zeros(weight.numel // rows if back else rows)
    for values, row, column in _along(weight, axis):
        index, other = (column, row) if back else (row, column)
        _add(image, index, values * given[other])
    return image


def _cosine(a: Array, b: Array) -> float:
    import numpy

    length = float(numpy.linalg.norm(a) * numpy.linalg.norm(b))
    return float((a * b).sum()) / length if length else 0.0


def _add(sums: Array, index: Array, values: Array) -> None:
    """Add each of *values* to the one of *sums* that *index* says."""
    import numpy

    low = int(index.min())
    found = numpy.bincount(index - low, values)
    sums[low : low + len(found)] += found


def _divided(weight: TensorInfo, u: TensorInfo, v: TensorInfo, axis: int) -> Iterator[bytes]:
    import numpy

    dtype = numpy_dtype(weight.dtype)
    with numpy.errstate(all="ignore"):
        sigma = (_whole(u) * _image(weight, v, axis)).sum()
        for values in _arrays(weight):
            yield (values.astype(numpy.float64) / sigma).astype(dtype).tobytes()
