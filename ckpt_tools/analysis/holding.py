"""Which of a model's parameters an optimizer in a file was made over.

An optimizer's ``state_dict()`` numbers its parameters in the order in which it was given them, group after group
(torch/optim/optimizer.py); names it has only where it was made over ``named_parameters()``, since torch 2.6. Without
names there are the sizes of its groups and, where state is kept, shapes. What people do with parameters is to go
through them in the model's order and to sort them into groups, so that each group has the model's order; what follows
from that and the shapes is told, and what does not is left open: two layers of one shape may stand for each other.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckpt_tools.checkpoint import Optimizer, TensorInfo
from ckpt_tools.contents import chunks
from ckpt_tools.records import record

Shape = tuple[int, ...]
Index = int | str

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.", "aux_classifier.")
"""What torchvision's classes call the heads that only training has a use for."""

_OLDER = "the optimizer was bound before part of the model was replaced"

MAX_WORK = 1 << 21
"""Groups times parameters from which on nothing is made of an optimizer's groups."""

MAX_ROUNDS = 8
"""How often what one group is sure of is told to the others."""


@record
class Over:
    """Parameters that an optimizer may have been made over: *what* in words, the *code* that makes it, the *names*."""

    what: str
    code: str
    names: Sequence[str]


@record
class Place:
    """Where a parameter stands with an optimizer: *held* by it, *stepped* by it; None where that cannot be told.

    *index* is its number there, where it can be told which of several of its shape it is.
    """

    held: bool | None
    stepped: bool | None = None
    index: Index | None = None


@record
class Holding:
    """The place of each parameter by name.

    *names* are those of what the optimizer holds, in its order, None where they cannot be told. *recorded* is whether
    it records them itself; *stale* are the numbers whose state is of a shape that the parameter of their name or place
    does not have: the optimizer is older than that part of the model. *how* is what was found, and by what; *fits* is
    whether anything was.
    """

    places: Mapping[str, Place]
    names: Sequence[str | None]
    how: str
    recorded: bool = False
    stale: Sequence[Index] = ()
    fits: bool = True

    @property
    def in_doubt(self) -> int:
        """How many parameters the optimizer may hold or not."""
        return sum(place.held is None for place in self.places.values())


def held_indexes(optimizer: Optimizer) -> list[Index]:
    """The numbers of what it holds, group after group."""
    return [index for group in optimizer.groups for index in group.params]


def state_shapes(optimizer: Optimizer) -> list[Shape | None]:
    """The shape of each parameter that it holds, as far as its state tells."""
    return [state_shape(optimizer.state.get(index, {})) for index in held_indexes(optimizer)]


def state_shape(state: Mapping[str, object]) -> Shape | None:
    """The shape of the parameter that a state is for; None where it does not tell.

    It is that of the largest tensor, which most optimizers have one or two of. Adafactor keeps sums over rows and over
    columns (with a 1 for what was summed in torch/optim/_adafactor.py, without in transformers); LBFGS vectors of all
    parameters at once.
    """
    if "prev_flat_grad" in state:
        return None
    average = state.get("exp_avg")
    if type(average) is TensorInfo and average.shape:
        return average.shape
    tensors = {key: value for key, value in state.items() if type(value) is TensorInfo and value.shape}
    if not tensors:
        return None
    if len(tensors) > 1:
        for row, column, kept in (("row_var", "col_var", -1), ("exp_avg_sq_row", "exp_avg_sq_col", None)):
            if row in tensors and column in tensors:
                return tensors[row].shape[:kept] + tensors[column].shape[-1:]
    return max(tensors.values(), key=lambda tensor: tensor.numel).shape


def last_layer(shapes: Mapping[str, Shape]) -> str | None:
    """The name of the last layer that has a matrix of weights, auxiliary heads left out."""
    for name in reversed(list(shapes)):
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(shapes[name]) >= 2 and not any(part in name for part in AUXILIARY):
            return layer
    return None


# --- what people make optimizers over


def usual(optimizer: Optimizer, shapes: Mapping[str, Shape], flags: Mapping[str, bool] | None = None) -> list[Over]:
    """What fits of all that people make optimizers over, the most usual first.

    *shapes* are the parameters of the model in its order, *flags* their ``requires_grad`` where it is known.
    """
    return list(_fitting(optimizer, state_shapes(optimizer), shapes, flags))


def _fitting(
    optimizer: Optimizer, wanted: Sequence[Shape | None], shapes: Mapping[str, Shape], flags: Mapping[str, bool] | None
) -> Iterator[Over]:
    """What `usual` finds, one by one; *wanted* are the `state_shapes`."""
    starts = set(itertools.accumulate(len(group.params) for group in optimizer.groups))
    for over, border in _candidates(optimizer, shapes, flags):
        # where there are groups, what stands in two parts stands in two groups
        split_as_groups = not border or len(optimizer.groups) == 1 or border in starts
        if split_as_groups and fitting(over.names, wanted, shapes):
            yield over


def fitting(names: Sequence[str], wanted: Sequence[Shape | None], shapes: Mapping[str, Shape]) -> bool:
    """Whether these are as many parameters as are *wanted*, of the wanted shapes where these are known."""
    return len(names) == len(wanted) and all(
        size is None or shapes[name] == size for name, size in zip(names, wanted, strict=True)
    )


def _candidates(
    optimizer: Optimizer, shapes: Mapping[str, Shape], flags: Mapping[str, bool] | None
) -> Iterator[tuple[Over, int]]:
    """Each with the position at which its second part begins, 0 where it is in one."""
    named = recorded_names(optimizer, shapes)
    if named is not None and all(name in shapes for name in named):
        yield Over("by the names that it records", "names", [str(name) for name in named]), 0
    everything = list(shapes)
    yield Over("all of the model's", "all", everything), 0
    flagged = [name for name in everything if flags is not None and flags.get(name, True)]
    part = flags is not None and 0 < len(flagged) < len(everything)
    if part:
        yield Over("those with requires_grad", "flags", flagged), 0
    head = last_layer(shapes)
    if head is not None:
        of_head = [name for name in everything if name.startswith(f"{head}.")]
        outer = head.partition(".")[0]
        of_outer = [name for name in everything if name.startswith(f"{outer}.")]
        if not (part and of_head == flagged):
            yield Over("the head alone", "head", of_head), 0
        if of_outer not in (of_head, everything) and not (part and of_outer == flagged):
            yield Over(f"those of {outer}", "outer", of_outer), 0
    for pool, of_these in ((everything, ""), *(((flagged, " of those with requires_grad"),) if part else ())):
        matrices = [name for name in pool if len(shapes[name]) > 1]
        vectors = [name for name in pool if len(shapes[name]) <= 1]
        if matrices and vectors:
            for first, second, words in (
                (matrices, vectors, "matrices, then vectors"),
                (vectors, matrices, "vectors, then matrices"),
            ):
                what = f"{words}{of_these} (as weight decay is split)"
                yield Over(what, "split", [*first, *second]), len(first)
        for first in (of_head, of_outer) if head is not None else ():
            rest = [name for name in pool if name not in set(first)]
            if rest and len(rest) < len(pool):
                for one, other, words in (
                    (first, rest, "the head, then the rest"),
                    (rest, first, "the rest, then the head"),
                ):
                    yield Over(f"{words}{of_these}", "head-first", [*one, *other]), len(one)
    yield Over("all of the model's, last first", "reversed", everything[::-1]), 0


def recorded_names(optimizer: Optimizer, known: Iterable[str]) -> list[str] | None:
    """The names of what it holds that it records: beside its numbers, or in their place as FSDP has them.

    Without the prefix of wrappers by which they differ from *known* ones. None where it does not record them.
    """
    indexes = held_indexes(optimizer)
    names = [name for group in optimizer.groups for name in group.names or ()]
    if len(names) != len(indexes) or not names:
        names = [index for index in indexes if isinstance(index, str)]
        if len(names) != len(indexes) or not names:
            return None
    own = list(known)
    exact = set(own)
    if not exact.intersection(names):
        for name in own:
            if names[0].endswith(f".{name}"):
                prefix = names[0].removesuffix(name)
                return [each.removeprefix(prefix) for each in names]
            if name.endswith(f".{names[0]}"):
                return [name.removesuffix(names[0]) + each for each in names]
    return names


# --- what can be told


def holding(optimizer: Optimizer, shapes: Mapping[str, Shape], flags: Mapping[str, bool] | None = None) -> Holding:
    """Where each parameter of a model stands with *optimizer*; arguments are as of `usual`."""
    indexes = held_indexes(optimizer)
    wanted = state_shapes(optimizer)
    stepped = {index: _stepped(optimizer.state.get(index, {})) for index in indexes}
    named = recorded_names(optimizer, shapes)
    if named is not None and any(name in shapes for name in named):
        return _by_names(named, indexes, wanted, stepped, shapes)
    fits = _fitting(optimizer, wanted, shapes, flags)
    whole = (over for over in fits if over.code not in ("head", "outer", "names"))
    likeliest = next(whole, None)
    if likeliest is not None:
        # in one group the model's order is what one has without meaning to; in several, others may fit as well
        others = whole if len(optimizer.groups) > 1 else ()
        rivals = [likeliest, *(over for over in others if set(over.names) == set(likeliest.names))]
        return _agreed(rivals, indexes, stepped, shapes)
    held = f"the optimizer holds {len(indexes)} of {len(shapes)} parameters"
    runs = [list(range(len(indexes)))]
    ranges = _ranges(runs, wanted, list(shapes.values()))
    if ranges is not None:
        return _placed(ranges, indexes, wanted, stepped, shapes, f"{held}, matched by order and shapes")
    by_group = list(_runs(optimizer))
    if len(by_group) > 1:
        ranges = _ranges(by_group, wanted, list(shapes.values()))
        if ranges is not None:
            how = f"{held}, matched by shapes and by the order in each of {len(by_group)} groups"
            return _placed(ranges, indexes, wanted, stepped, shapes, how)
    ranges = _ranges([[i] for i in range(len(indexes))], wanted, list(shapes.values()))
    if ranges is not None:
        return _placed(ranges, indexes, wanted, stepped, shapes, f"{held}, matched by shapes alone")
    return _of_an_older_model(by_group, indexes, wanted, stepped, shapes)


def _stepped(state: Mapping[str, object]) -> bool:
    step = state.get("step")
    if "sum" in state and isinstance(step, TensorInfo) and step.storage is not None and step.numel == 1:
        # torch/optim/adagrad.py makes its state before the first step
        return any(b"".join(chunks(step)))
    return bool(state)


def _runs(optimizer: Optimizer) -> Iterator[list[int]]:
    """The positions of what each group holds."""
    at = 0
    for group in optimizer.groups:
        if group.params:
            yield list(range(at, at + len(group.params)))
        at += len(group.params)


def _by_names(
    named: Sequence[str],
    indexes: Sequence[Index],
    wanted: Sequence[Shape | None],
    stepped: Mapping[Index, bool],
    shapes: Mapping[str, Shape],
) -> Holding:
    places = dict.fromkeys(shapes, Place(False))
    names: list[str | None] = []
    stale = []
    for name, index, size in zip(named, indexes, wanted, strict=True):
        fits = name in shapes and size in (None, shapes[name])
        names.append(name if fits else None)
        if fits:
            places[name] = Place(True, stepped[index], index)
        elif size is not None:
            stale.append(index)
    how = f"{_OLDER}: by the names that it records" if stale else "the optimizer records its parameters' names"
    return Holding(places, names, how, True, stale)


def _agreed(
    rivals: Sequence[Over], indexes: Sequence[Index], stepped: Mapping[Index, bool], shapes: Mapping[str, Shape]
) -> Holding:
    """What is so whichever of *rivals* it was; all of them are over the same parameters."""
    numbers = [dict(zip(over.names, indexes, strict=True)) for over in rivals]
    places = dict.fromkeys(shapes, Place(False))
    for name in rivals[0].names:
        mine = {number[name] for number in numbers}
        steps = {stepped[index] for index in mine}
        only = next(iter(mine)) if len(mine) == 1 else None
        places[name] = Place(True, steps.pop() if len(steps) == 1 else None, only)
    orders = [over.names for over in rivals]
    names = [one[0] if len(set(one)) == 1 else None for one in zip(*orders, strict=True)]
    what = "order and shapes" if rivals[0].code == "all" else f"shapes: {rivals[0].what}"
    return Holding(places, names, f"the optimizer holds {len(indexes)} of {len(shapes)} parameters, matched by {what}")


def _ranges(
    runs: Sequence[Sequence[int]], sizes: Sequence[Shape | None], wanted: Sequence[Shape]
) -> dict[int, tuple[int, int]] | None:
    """For each of what is in *runs*, the first and the last place in *wanted* that it can have; None: they do not fit.

    Each run keeps the order of *wanted*, and two are never in one place. What can only be in one place keeps the others
    out of it, which may leave these less to choose from; so this goes on until nothing changes.
    """
    if len(runs) * len(wanted) > MAX_WORK or sum(map(len, runs)) > len(wanted):
        return None
    ranges: dict[int, tuple[int, int]] = {}
    at: dict[int, int] = {}
    last = len(wanted) - 1
    for _ in range(MAX_ROUNDS):
        taken = {place: i for i, place in at.items()}
        backwards = {last - place: i for place, i in taken.items()}
        for run in runs:
            low = _embed(run, sizes, wanted, taken)
            high = _embed(run[::-1], sizes, wanted[::-1], backwards)
            if low is None or high is None:
                return None
            for i, first, behind in zip(run, low, reversed(high), strict=True):
                ranges[i] = (first, last - behind)
        sure = {i: low for i, (low, high) in ranges.items() if low == high}
        if len(set(sure.values())) < len(sure):
            return None
        if sure == at or len(runs) == 1:
            break
        at = sure
    supply = Counter(wanted)
    demand = Counter(sizes[i] for run in runs for i in run)
    if any(size is not None and number > supply[size] for size, number in demand.items()):
        return None
    return ranges


def _embed(
    run: Sequence[int], sizes: Sequence[Shape | None], wanted: Sequence[Shape], taken: Mapping[int, int]
) -> list[int] | None:
    """The leftmost places in *wanted* at which *run* fits in order; *taken* says whose some places are."""
    places: list[int] = []
    own = {i: place for place, i in taken.items()}
    at = 0
    for i in run:
        at = max(at, own.get(i, at))
        while at < len(wanted) and (sizes[i] not in (None, wanted[at]) or taken.get(at, i) != i):
            at += 1
        if at == len(wanted):
            return None
        places.append(at)
        at += 1
    return places


def _placed(
    ranges: Mapping[int, tuple[int, int]],
    indexes: Sequence[Index],
    sizes: Sequence[Shape | None],
    stepped: Mapping[Index, bool],
    shapes: Mapping[str, Shape],
    how: str,
    stale: Sequence[Index] = (),
) -> Holding:
    """What follows from the *ranges* in which each of what the optimizer holds must be."""
    order = list(shapes)
    sure = {low: i for i, (low, high) in ranges.items() if low == high}
    supply, demand = Counter(shapes.values()), Counter(sizes[i] for i in ranges)
    steps: dict[Shape, set[bool]] = {}
    # how many may be at each place: of each shape, and of those whose shape is not known
    changes: dict[tuple[Shape | None, bool], Counter[int]] = {}
    for i, (low, high) in ranges.items():
        size, step = sizes[i], stepped[indexes[i]]
        if size is not None:
            steps.setdefault(size, set()).add(step)
        if low < high:
            edges = changes.setdefault((size, step), Counter())
            edges[low] += 1
            edges[high + 1] -= 1
    running: Counter[tuple[Shape | None, bool]] = Counter()
    everything = len(ranges) == len(order)
    places: dict[str, Place] = {}
    for at, name in enumerate(order):
        for kind, edges in changes.items():
            running[kind] += edges.get(at, 0)
        if at in sure:
            index = indexes[sure[at]]
            places[name] = Place(True, stepped[index], index)
            continue
        shape = shapes[name]
        may = {step for size in (shape, None) for step in (True, False) if running[size, step] > 0}
        if demand[shape] == supply[shape]:  # as many as there are, so it is one of them
            places[name] = Place(True, *steps[shape]) if len(steps[shape]) == 1 else Place(True)
        elif everything:
            places[name] = Place(True, *may) if len(may) == 1 else Place(True)
        else:
            places[name] = Place(None) if may else Place(False)
    names: list[str | None] = [None] * len(indexes)
    for at, i in sure.items():
        names[i] = order[at]
    return Holding(places, names, how, stale=stale)


def _of_an_older_model(
    runs: Sequence[Sequence[int]],
    indexes: Sequence[Index],
    sizes: Sequence[Shape | None],
    stepped: Mapping[Index, bool],
    shapes: Mapping[str, Shape],
) -> Holding:
    """A layer was replaced after the optimizer was made: what is left of the older model still fits."""
    wanted = list(shapes.values())
    pairs = _ends(sizes, wanted)
    matched = {i for i, _ in pairs}
    how = f"{_OLDER}: by order and shapes"
    stale = [index for i, index in enumerate(indexes) if i not in matched and sizes[i]]
    if stale and 2 * len(pairs) >= len(indexes):
        ranges = {i: (at, at) for i, at in pairs}
        return _placed(ranges, indexes, sizes, stepped, shapes, how, stale)
    known = set(wanted)
    gone = {i for run in runs for i in run if sizes[i] is not None and sizes[i] not in known}
    left = [[i for i in run if i not in gone] for run in runs]
    found = _ranges([run for run in left if run], sizes, wanted)
    if gone and found and 2 * len(found) >= len(indexes):
        return _placed(found, indexes, sizes, stepped, shapes, how, [indexes[i] for i in sorted(gone)])
    how = "the shapes of the optimizer's state do not fit the model's parameters"
    if len(indexes) > len(shapes):
        how = f"the optimizer holds {len(indexes)} parameters, the model has {len(shapes)}: it is of another model"
    return Holding(dict.fromkeys(shapes, Place(None)), [None] * len(indexes), how, fits=False)


def _ends(sizes: Sequence[Shape | None], wanted: Sequence[Shape]) -> list[tuple[int, int]]:
    """Pairs of positions in *sizes* and *wanted* that fit from the front, and then from the back."""
    shorter = min(len(sizes), len(wanted))
    front = 0
    while front < shorter and sizes[front] in (None, wanted[front]):
        front += 1
    back = 0
    while back < shorter - front and sizes[-1 - back] in (None, wanted[-1 - back]):
        back += 1
    pairs = [(i, i) for i in range(front)]
    return pairs + [(len(sizes) - i, len(wanted) - i) for i in range(back, 0, -1)]
