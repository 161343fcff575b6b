"""Folders that DeepSpeed's ZeRO writes: weights cut into flat partitions, one file a rank.

A run's folder has ``latest``, which names the folder of a save (``global_step500``); in that are, for model-parallel
rank *m* and data-parallel rank *d* (deepspeed/runtime/engine.py, ``_save_checkpoint``, ``_save_zero_checkpoint``):

- ``mp_rank_<m>_model_states.pt`` (stages 0 to 2): ``module``, the whole weights in the precision of training;
  ``param_shapes``, for each parameter group the names and shapes of the trainable parameters, in the order in which
  they were flattened; ``buffer_names``; ``frozen_param_shapes`` and ``frozen_param_fragments``; ``shared_params``, the
  names that stand for another's memory.
- ``zero_pp_rank_<d>_mp_rank_<m>_model_states.pt`` (stage 3): the same of each rank, but in ``module`` parameters are
  placeholders of no elements, and the fragments of frozen parameters are this rank's.
- ``zero_pp_rank_<d>_mp_rank_<m>_optim_states.pt``, with ``bf16_`` before it where that was the precision:
  ``optimizer_state_dict`` with ``zero_stage``, ``partition_count``, the moments, and this rank's part of the float32
  weights. In stages 1 and 2 that is ``single_partition_of_fp32_groups``: the parameters of a group follow each other,
  and so do the ranks; padding is at the end. In stage 3 it is ``fp32_flat_groups``: each parameter is cut by itself,
  into parts of ceil(elements / ranks), the last one padded.

Described is what deepspeed/utils/zero_to_fp32.py would make of it: a state_dict at ``fp32`` with the trainable
parameters in float32, the frozen ones and the buffers as they were saved (that script makes float32 of buffers), and
shared parameters under both names. Its tensors are put together from the partitions as they are read
(`ckpt_tools.formats.assembled`). ``parts`` are the files; ``module`` and the moments stand beside, under their files'
names. With several model-parallel ranks there is one such state_dict for each, whose tensors are slices that only
the model's own code can join.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain, islice

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Found, StateDict, Storage, TensorInfo, TrainingState
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import CkptError, CorruptFile, NotFound
from ckpt_tools.formats import torch_legacy, torch_zip
from ckpt_tools.formats.assembled import Assembled, Piece, elements
from ckpt_tools.formats.base import Format
from ckpt_tools.formats.dense import dense
from ckpt_tools.formats.parts import all_anomalies, all_pickles, all_refusals, beside, common, open_part
from ckpt_tools.pickles.torch_objects import MAX_RANK
from ckpt_tools.pickles.values import brief, plain
from ckpt_tools.report import count, listed, shortened
from ckpt_tools.sources import Folder, MemorySource, Source

FP32 = "fp32"
"""The path of the consolidated state_dict."""
SHOWN = 6
"""How many missing files are named."""

_STATES = re.compile(r"(?:[a-z0-9]+_)??(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,6})_?(model|optim)_states\.pt")
_OTHER = re.compile(
    r"layer_\d+-model_\d+-model_states\.pt"  # of a pipeline
    r"|(?:layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt|expp_rank_\d+_mp_rank_\d+_optim_states\.pt"  # of experts
)
_TAG_BYTES = 4096


def is_deepspeed(folder: Folder) -> bool:
    """Whether it is the folder of a save, or that of a run which names one as its latest."""
    names = folder.names()
    if any(_STATES.fullmatch(name) for name in names):
        return True
    if "latest" not in names:
        return False
    if "zero_to_fp32.py" in names:  # DeepSpeed leaves it there
        return True
    try:
        return any(_STATES.fullmatch(name) for name in folder.folder(_tag(folder)).names())
    except CkptError:
        return False


def read(folder: Folder) -> Checkpoint:
    """The weights of the latest save, or of the one in *folder*; the files' pickles are read, no tensor bytes.

    Raises `CorruptFile` where files of ranks are missing, or do not hold what the shapes want.
    """
    names, prefix, place = folder.names(), "", folder
    if not any(_STATES.fullmatch(name) for name in names):
        tag = _tag(folder)
        place = folder.folder(tag)
        try:
            names = place.names()
        except NotFound:
            names = []
        if not any(_STATES.fullmatch(name) for name in names):
            others = [name for name in folder.folders() if _holds_states(folder.folder(name))]
            raise CorruptFile(
                f"latest names {shortened(tag)!r}, where no states of DeepSpeed are; "
                + (f"there are some in {listed(others)}" if others else "there are none in any folder beside it"),
                path=folder.name,
                member="latest",
                remedy="Name the folder of a save itself",
            )
        prefix = f"{tag}/"
    save = _Save(place, prefix)
    for name in names:
        save.add(name)
    around = folder.names() if prefix else []
    try:
        made = save.describe(folder)
    except CkptError as error:
        raise error.at(path=place.name) from None
    rest = beside([*around, *(prefix + name for name in names)], {prefix + name for name in save.parts})
    return replace(made, metadata={**made.metadata, **rest})


def _tag(folder: Folder) -> str:
    latest = folder.open("latest")
    return latest.read(0, min(latest.size, _TAG_BYTES)).decode("utf-8", "replace").strip()


def _holds_states(folder: Folder) -> bool:
    try:
        return any(_STATES.fullmatch(name) for name in folder.names())
    except CkptError:
        return False


# --- the files


@dataclass(slots=True)
class _Files:
    """The states of one model-parallel rank, by data-parallel rank; None where the file's name has none."""

    model: dict[int | None, str] = field(default_factory=dict)
    optim: dict[int | None, str] = field(default_factory=dict)


class _Save:
    """The files of one save."""

    def __init__(self, folder: Folder, prefix: str) -> None:
        self.folder = folder
        self.prefix = prefix
        self.ranks: dict[int, _Files] = {}
        self.others: list[str] = []
        self.parts: dict[str, Checkpoint] = {}
        self.anomalies: list[Anomaly] = []

    def add(self, name: str) -> None:
        """Open the file *name*, if it is one of DeepSpeed's, and sort it in."""
        match = _STATES.fullmatch(name)
        if match:
            files = self.ranks.setdefault(int(match[2]), _Files())
            known = files.model if match[3] == "model" else files.optim
            rank = int(match[1]) if match[1] else None
            if rank in known:
                self.anomalies.append(Anomaly(f"states of the same rank as {known[rank]}; the first are read", name))
            known.setdefault(rank, name)
        elif _OTHER.fullmatch(name):
            self.others.append(name)
        else:
            return
        self.parts[name] = open_part(self.folder.open(name), (torch_zip.FORMAT, torch_legacy.FORMAT))

    def describe(self, folder: Folder) -> Checkpoint:
        """The save as one checkpoint."""
        models = [_Model(self, files) for _, files in sorted(self.ranks.items())]
        state_dicts: list[StateDict] = []
        for (rank, _), model in zip(sorted(self.ranks.items()), models, strict=True):
            path = (FP32,) if len(models) == 1 else (f"mp_rank_{rank:02}", FP32)
            state_dicts += [replace(s, path=(*path, *s.path)) for s in model.consolidated()]
        consolidated = bool(state_dicts)
        for model in models:
            state_dicts += model.saved(consolidated)
        for name in self.others:
            state_dicts += self.at(name, self.parts[name].state_dicts)
        parts = {self.prefix + name: part for name, part in self.parts.items()}
        stage = next((model.stage for model in models if model.stage is not None), None)
        ranks = max(model.world for model in models)
        slices = f", {count(len(models), 'model-parallel rank')}" if len(models) > 1 else ""
        training = self._training(models[0])
        return Checkpoint(
            path=folder.name,
            source=folder,
            format=FORMAT.name,
            title=f"DeepSpeed {'states' if stage is None else f'ZeRO stage {stage}'}, {count(ranks, 'rank')}{slices}",
            kind="training" if training is not None else "state_dict",
            state_dicts=tuple(state_dicts),
            training=training,
            values={name: part.values for name, part in parts.items()},
            loose=tuple(chain.from_iterable(model.loose() for model in models)),
            metadata=dict(self._noted(models, stage, ranks)),
            producer={**models[0].version(), **common([part.producer for part in parts.values()])},
            pickles=all_pickles(parts),
            refusals=all_refusals(parts),
            anomalies=(*self.anomalies, *all_anomalies(parts)),
            parts=tuple(parts.values()),
            size=sum(part.size for part in parts.values()),
        )

    def at(self, name: str, state_dicts: Sequence[StateDict]) -> list[StateDict]:
        """*state_dicts* under the name of their file."""
        return [replace(found, path=(self.prefix + name, *found.path)) for found in state_dicts]

    def _noted(self, models: Sequence[_Model], stage: int | None, ranks: int) -> Iterator[tuple[str, object]]:
        if stage is not None:
            yield "zero_stage", stage
        yield "ranks", ranks
        if len(models) > 1:
            yield "model-parallel ranks", len(models)
        if self.others:
            yield "pipeline or experts", f"{count(len(self.others), 'file')} beside the ranks' own"
        placeholders = sum(len(model.placeholders) for model in models)
        if placeholders:
            yield "placeholders", f"{placeholders:,} parameters have no elements in module: the partitions hold them"
        for model in models:
            yield from model.partitions()

    def _training(self, model: _Model) -> TrainingState | None:
        """The run's values as the first rank has them.

        Its optimizers are left out where they hold partitions: these have no parameters that names could be
        given to; their learning rate is kept.
        """
        merged: TrainingState | None = None
        for name in (model.model, *islice(model.optim.values(), 1)):
            run = self.parts[name].training if name is not None else None
            if run is None:
                continue
            at = self.prefix + name if name is not None else ""

            def below(found: Found | None, at: str = at) -> Found | None:
                return replace(found, path=(at, *found.path)) if found is not None else None

            whole = model.stage is None
            known = merged or TrainingState()
            merged = TrainingState(
                epoch=known.epoch or below(run.epoch),
                step=known.step or below(run.step),
                loss=known.loss or below(run.loss),
                metrics={**{key: replace(f, path=(at, *f.path)) for key, f in run.metrics.items()}, **known.metrics},
                lr=known.lr or below(run.lr),
                optimizers=tuple(replace(o, path=(at, *o.path)) for o in run.optimizers) if whole else (),
                schedulers=(*known.schedulers, *((at, *path) for path in run.schedulers)),
                rng=(*known.rng, *((at, *path) for path in run.rng)),
                arguments=known.arguments or below(run.arguments),
            )
        return merged


# --- one model-parallel rank


@dataclass(frozen=True, slots=True)
class _Flat:
    """One-dimensional sources, one after the other, of *numel* elements together."""

    sources: tuple[Source, ...]
    ends: tuple[int, ...]
    dtype: DType

    @property
    def numel(self) -> int:
        return self.ends[-1] if self.ends else 0

    def cut(self, start: int, stop: int, name: str) -> Source:
        """The bytes of the elements from *start* to *stop*."""
        size = self.dtype.itemsize

        def pieces() -> list[Piece]:
            found: list[Piece] = []
            at, index = start, bisect_right(self.ends, start)
            while at < stop:
                begin = self.ends[index - 1] if index else 0
                end = min(stop, self.ends[index])
                if end > at:
                    source = self.sources[index].slice((at - begin) * size, (end - at) * size, name)
                    found.append(Piece((at - start,), (end - at,), source))
                at, index = end, index + 1
            return found

        if start == stop:
            return MemorySource(b"", name)
        first = bisect_right(self.ends, start)
        if stop <= self.ends[first]:
            return pieces()[0].source
        return Assembled(name, (stop - start,), size, pieces)


class _Model:
    """What the files of one model-parallel rank say together."""

    def __init__(self, save: _Save, files: _Files) -> None:
        self.save = save
        self.files = files
        self.stage: int | None = None
        self.placeholders: dict[str, tuple[int, ...]] = {}
        self.optim: dict[int, str] = {}
        self.model: str | None = files.model.get(None) or next(
            (name for rank, name in sorted(files.model.items(), key=lambda item: item[0] or 0)), None
        )
        self._states = _mapping(save.parts[self.model].values) if self.model is not None else {}
        world = plain(self._states.get("dp_world_size"))
        self.world = world if type(world) is int and 0 < world < 1 << 32 else 1
        if files.optim:
            self._partitioned()
        elif None not in files.model:
            self.stage = 3
            self.world = max(self.world, *(rank + 1 for rank in files.model if rank is not None))
            self._require((), "optim")
        elif plain(self._states.get("param_shapes")) is not None:
            what = "there are no partitions beside it: weights in float32 and the optimizer's state are missing"
            save.anomalies.append(Anomaly(what, str(self.model)))

    def version(self) -> dict[str, str]:
        """DeepSpeed's version, where it is recorded."""
        version = plain(self._states.get("ds_version"))
        return {"DeepSpeed": shortened(version)} if isinstance(version, str) else {}

    # --- which files there are

    def _partitioned(self) -> None:
        """Find the stage and the ranks, and see that each rank's files are there."""
        optim = {_number(rank): name for rank, name in self.files.optim.items()}
        first = self._optimizer(optim[min(optim)])
        stage = plain(first.get("zero_stage"))
        flat3 = "fp32_flat_groups" in first
        if stage is not None and (type(stage) is not int or not 0 <= stage <= 3):
            raise CorruptFile(f"its zero_stage is {brief(stage)}", member=optim[min(optim)])
        # BF16_Optimizer, which is of the first stage, records none
        self.stage = stage if stage is not None else 3 if flat3 else 1
        self.world = self._count(optim[min(optim)])
        missing = self.world - sum(rank < self.world for rank in optim)
        if missing > 0:
            self._require(optim, "optim")
        for rank, name in sorted(optim.items()):
            if rank >= self.world:
                what = f"of rank {rank}, where the others are of {self.world}: left behind by another save"
                self.save.anomalies.append(Anomaly(what, name))
            elif self._count(name) != self.world:
                raise CorruptFile(
                    f"of {count(self._count(name), 'rank')}, where {optim[min(optim)]} is of {self.world}: the files "
                    "are of several saves",
                    member=name,
                )
            else:
                self.optim[rank] = name
        if self.model is None:
            raise CorruptFile(
                f"the partitions of {count(len(optim), 'rank')}, but no model states that tell the names and shapes",
                remedy="Fetch the files *_model_states.pt as well",
            )
        if self.stage == 3:
            models = {_number(rank) for rank in self.files.model}
            if len(models & set(range(self.world))) < self.world:
                if _shapes(self._states.get("frozen_param_shapes")):
                    self._require(models, "model")
                gone = [self._name(rank, "model") for rank in range(self.world) if rank not in models]
                what = f"{count(len(gone), 'file')} of model states missing; they repeat what the others have"
                self.save.anomalies.append(Anomaly(what, listed(gone)))

    def _count(self, name: str) -> int:
        """The number of ranks that a file of partitions says there are."""
        value = plain(self._optimizer(name).get("partition_count"))
        # a count for each group: those of experts have fewer
        counts = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and 0 < n < 1 << 32]
        if not counts:
            raise CorruptFile(f"its partition_count is {brief(value)}", member=name)
        return max(counts)

    def _require(self, there: Collection[int], kind: str) -> None:
        """Raise the error that names the files of the ranks which are not *there*."""
        missing = self.world - sum(rank < self.world for rank in there)
        absent = islice((rank for rank in range(self.world) if rank not in there), SHOWN)
        raise CorruptFile(
            f"the {'partitions' if kind == 'optim' else 'model states'} of {missing:,} of "
            f"{count(self.world, 'rank')} are missing: {listed([self._name(rank, kind) for rank in absent])}"
            + (f" and {missing - SHOWN:,} more" if missing > SHOWN else ""),
            remedy="Fetch the missing files: each rank writes its own, on the machine where it ran",
        )

    def _name(self, rank: int, kind: str) -> str:
        """What the file of a rank is called, by the names of the others."""
        known = self.files.optim if kind == "optim" else self.files.model
        example = next((name for name in known.values()), None)
        if example is None:
            example = str(self.model).replace("model_states", "optim_states")
        return re.sub(r"zero_pp_rank_\d+", f"zero_pp_rank_{rank}", example)

    def _optimizer(self, name: str) -> Mapping[object, object]:
        """The state that a file of partitions holds."""
        state = plain(_mapping(self.save.parts[name].values).get("optimizer_state_dict"))
        if not isinstance(state, dict):
            raise CorruptFile("has no optimizer_state_dict", member=name)
        return state

    # --- the weights

    def consolidated(self) -> list[StateDict]:
        """The whole weights, put together; [] where there are no partitions."""
        if not self.optim or self.model is None:
            return []
        trained = self._trained()
        frozen = self._frozen()
        shared = _mapping_or_none(self._states.get("shared_params"))
        buffers = plain(self._states.get("buffer_names"))
        buffer_names = set(filter(lambda n: isinstance(n, str), buffers)) if isinstance(buffers, list) else set()
        entries: dict[str, object] = {}
        for name, value in self._module.items():
            alias = plain(shared.get(name))
            found = trained.get(name) or frozen.get(name)
            if found is None and isinstance(alias, str):
                found = trained.get(alias) or frozen.get(alias)
                if found is not None and self.stage == 3:
                    self.placeholders[name] = found.shape
            if found is not None:
                entries[name] = found.renamed(name)
            elif isinstance(value, TensorInfo) and name in buffer_names:
                entries[name] = replace(value, is_parameter=False)
            elif isinstance(value, TensorInfo):
                if self.stage == 3 and not value.numel:
                    self.save.anomalies.append(Anomaly("a placeholder whose parameter no partition holds", name))
                # no buffer, and not in the optimizer: whether it requires grad is not recorded
                entries[name] = replace(value, is_parameter=True, requires_grad=None)
            else:
                entries[name] = value
        for name, tensor in chain(trained.items(), frozen.items()):
            entries.setdefault(name, tensor)
        return [StateDict((), "model", entries, self._versions)]

    @cached_property
    def _module(self) -> dict[str, object]:
        """The entries of ``module``; a pipeline has none here."""
        module = _mapping_or_none(self._states.get("module"))
        return {name: plain(value) for name, value in module.items() if isinstance(name, str)}

    @cached_property
    def _versions(self) -> Mapping[str, object] | None:
        """The ``_metadata`` of ``module``."""
        assert self.model is not None
        return next((s.metadata for s in self.save.parts[self.model].state_dicts if s.path == ("module",)), None)

    def _trained(self) -> dict[str, TensorInfo]:
        groups = plain(self._states.get("param_shapes"))
        if not isinstance(groups, list):
            raise CorruptFile(f"its param_shapes are {brief(groups)}, no list of groups", member=self.model)
        shapes: list[dict[str, tuple[int, ...]]] = []
        seen: set[str] = set()
        for group in groups:
            shapes.append(_shapes(group))
            twice = next((name for name in shapes[-1] if name in seen), None)
            if twice is not None:
                raise CorruptFile(f"its param_shapes name {shortened(twice)} twice", member=self.model)
            seen |= shapes[-1].keys()
        made = self._by_parameter(shapes) if self.stage == 3 else self._by_group(shapes)
        return {name: replace(tensor, is_parameter=True, requires_grad=True) for name, tensor in made.items()}

    def _by_group(self, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
        """Stages 1 and 2: the parameters of each group follow each other, over all ranks."""
        key = "single_partition_of_fp32_groups"
        flats = [self._flat(name, key) for name in self.optim.values()]
        made: dict[str, TensorInfo] = {}
        for index, group in enumerate(shapes):
            there = [flat[index] for flat in flats if index < len(flat)]
            if len(there) != len(flats):
                raise CorruptFile(f"param_shapes have {len(shapes)} groups, and {key} fewer", member=self.model)
            whole = self._join(there)
            wanted = sum(math.prod(shape) for shape in group.values())
            # each group is padded to a multiple of this, or not at all
            align = 2 * self.world
            if whole.numel < wanted or -(-whole.numel // align) != -(-wanted // align):
                raise CorruptFile(
                    f"the partitions of group {index} hold {count(whole.numel, 'element')}, but its parameters have "
                    f"{wanted:,}, which would be padded to a multiple of {align:,}",
                    member=self.model,
                )
            at = 0
            for name, shape in group.items():
                numel = math.prod(shape)
                made[name] = self._tensor(name, shape, whole.dtype, whole.cut(at, at + numel, self._label(name)))
                at += numel
        return made

    def _by_parameter(self, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
        """Stage 3: each rank has its part of every parameter, in the order of all groups."""
        ranks = [self._join(self._flat(name, "fp32_flat_groups")) for name in self.optim.values()]
        if len({(flat.numel, flat.dtype) for flat in ranks}) > 1:
            raise CorruptFile("the ranks' fp32_flat_groups differ in size or type", member=self.model)
        wanted = sum(-(-math.prod(shape) // self.world) for group in shapes for shape in group.values())
        if wanted != ranks[0].numel:
            raise CorruptFile(
                f"each rank holds {count(ranks[0].numel, 'element')}, but the parameters take {wanted:,} of it",
                member=self.model,
            )
        made: dict[str, TensorInfo] = {}
        at = 0
        for group in shapes:
            for name, shape in group.items():
                part = -(-math.prod(shape) // self.world)
                made[name] = self._tensor(name, shape, ranks[0].dtype, self._gathered(name, shape, ranks, at, part))
                self.placeholders[name] = shape
                at += part
        return made

    def _frozen(self) -> dict[str, TensorInfo]:
        """The parameters that do not require grad, where they are kept apart (from stage 2 on)."""
        shapes = _shapes(self._states.get("frozen_param_shapes"))
        if not shapes:
            return {}
        models = [self.model] if self.stage != 3 else [self.files.model[rank] for rank in self._model_ranks()]
        fragments = [
            _mapping_or_none(_mapping(self.save.parts[str(m)].values).get("frozen_param_fragments")) for m in models
        ]
        made: dict[str, TensorInfo] = {}
        for name, shape in shapes.items():
            found = [plain(of_rank.get(name)) for of_rank in fragments]
            tensors = [tensor for tensor in found if isinstance(tensor, TensorInfo)]
            if len(tensors) != len(found):
                raise CorruptFile(
                    f"the frozen parameter {shortened(name)} has a shape but no fragment", member=self.model
                )
            ranks = [self._join([tensor]) for tensor in tensors]
            part = -(-math.prod(shape) // len(ranks))
            if any(flat.numel != part or flat.dtype != ranks[0].dtype for flat in ranks):
                sizes = sorted({flat.numel for flat in ranks})
                raise CorruptFile(
                    f"the fragments of the frozen parameter {shortened(name)} have {listed(list(map(str, sizes)))} "
                    f"elements, where {part:,} of one type are wanted",
                    member=self.model,
                )
            source = self._gathered(name, shape, ranks, 0, part)
            tensor = self._tensor(name, shape, ranks[0].dtype, source)
            made[name] = replace(tensor, is_parameter=True, requires_grad=False)
            if self.stage == 3:
                self.placeholders[name] = shape
        return made

    def _model_ranks(self) -> list[int | None]:
        return sorted((rank for rank in self.files.model if _number(rank) < self.world), key=_number)

    def _gathered(self, name: str, shape: tuple[int, ...], ranks: Sequence[_Flat], at: int, part: int) -> Source:
        """The elements of a parameter of which each rank has *part*, from *at* on; the last part is padded."""
        numel, label = math.prod(shape), self._label(name)
        size = ranks[0].dtype.itemsize if ranks else 1

        def pieces() -> list[Piece]:
            found: list[Piece] = []
            for rank, flat in enumerate(ranks):
                start, stop = rank * part, min((rank + 1) * part, numel)
                if start < stop:
                    found.append(Piece((start,), (stop - start,), flat.cut(at, at + stop - start, label)))
            return found

        if numel <= part:
            return ranks[0].cut(at, at + numel, label)
        return Assembled(label, (numel,), size, pieces)

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: DType, source: Source) -> TensorInfo:
        return dense(name, dtype, shape, Storage(source, 0, source.size, dtype, "cpu", name))

    def _label(self, name: str) -> str:
        return f"{self.save.folder.name}: {shortened(name)}"

    def _flat(self, name: str, key: str) -> list[TensorInfo]:
        """The one-dimensional tensors that a file of partitions has at *key*."""
        listed_ = plain(self._optimizer(name).get(key))
        tensors = [plain(item) for item in listed_] if isinstance(listed_, list) else None
        if tensors is None or not all(isinstance(tensor, TensorInfo) for tensor in tensors):
            raise CorruptFile(f"has no tensors at {key}, but {brief(listed_)}", member=name)
        return [tensor for tensor in tensors if isinstance(tensor, TensorInfo)]

    def _join(self, tensors: Sequence[TensorInfo]) -> _Flat:
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) > 1:
            raise CorruptFile(
                f"partitions of one group are of {listed(sorted(d.name for d in dtypes))}", member=self.model
            )
        sources = tuple(elements(tensor, self._label(tensor.name or "partition")) for tensor in tensors)
        return _Flat(sources, tuple(accumulate(tensor.numel for tensor in tensors)), dtypes.pop())

    # --- what stands beside

    def saved(self, consolidated: bool) -> Iterator[StateDict]:
        """The state_dicts of the files: ``module`` as training has it, and the moments.

        *module* is the model only where nothing was *consolidated*.
        """
        if self.model is not None:
            for found in self.save.at(self.model, self.save.parts[self.model].state_dicts):
                if found.path[1:2] in (("frozen_param_fragments",), ("param_shapes",)):
                    continue
                if found.path[1:] == ("module",) and consolidated:
                    yield replace(found, role="other", entries=self._marked(found.entries))
                else:
                    yield found
        for name in self.optim.values():
            for found in self.save.at(name, self.save.parts[name].state_dicts):
                yield replace(found, role="optimizer")

    def _marked(self, entries: Mapping[str, object]) -> dict[str, object]:
        """*entries* with each placeholder called one."""
        return {
            name: replace(value, details={**value.details, "placeholder_of": self.placeholders[name]})
            if isinstance(value, TensorInfo) and not value.numel and name in self.placeholders
            else value
            for name, value in entries.items()
        }

    def loose(self) -> Iterator[tuple[tuple[object, ...], TensorInfo]]:
        """The tensors that are in no state_dict, without the partitions."""
        if self.model is not None:
            for path, tensor in self.save.parts[self.model].loose:
                yield (self.save.prefix + self.model, *path), tensor
        for name in self.optim.values():
            for path, tensor in self.save.parts[name].loose:
                if path[1:2] not in (("single_partition_of_fp32_groups",), ("fp32_flat_groups",)):
                    yield (self.save.prefix + name, *path), tensor

    def partitions(self) -> Iterator[tuple[str, object]]:
        """How much of the float32 weights each file of partitions holds."""
        for name in self.optim.values():
            key = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
            tensors = self._flat(name, key)
            yield name, f"{count(sum(t.numel for t in tensors), 'element')} in {count(len(tensors), 'group')}"


def _number(rank: int | None) -> int:
    return rank or 0


def _mapping(value: object) -> Mapping[object, object]:
    found = plain(value)
    if not isinstance(found, dict):
        raise CorruptFile(f"the states are no mapping but {brief(found)}")
    return found


def _mapping_or_none(value: object) -> Mapping[object, object]:
    found = plain(value)
    return found if isinstance(found, dict) else {}


def _shapes(value: object) -> dict[str, tuple[int, ...]]:
    """Names and shapes, as ``param_shapes`` has them for a group."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, raw in _mapping_or_none(value).items():
        shape = plain(raw)
        if type(name) is not str or not isinstance(shape, tuple | list) or len(shape) > MAX_RANK:
            raise CorruptFile(f"a parameter's shape is {brief((name, shape))}")
        for size in shape:
            if type(size) is not int or not 0 <= size < 1 << 63:
                raise CorruptFile(f"{shortened(name)} has a size of {brief(size)}")
        shapes[name] = tuple(shape)
    return shapes


FORMAT = Format("deepspeed", "DeepSpeed ZeRO", read, None, is_deepspeed)
