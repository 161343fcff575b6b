"""What a file's values are: where the state_dicts stand, what is an optimizer, what belongs to the run.

Everything is found by structure. A mapping of names to tensors is a state_dict whatever key it stands under;
names decide only between roles (``ema``) and label single values (``epoch``, ``loss``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ckpt_tools.checkpoint import (
    Found,
    KeyPath,
    Module,
    Optimizer,
    ParamGroup,
    Role,
    StateDict,
    TensorInfo,
    TrainingState,
    is_extra_state,
)
from ckpt_tools.pickles.values import Budget, Call, OrderedDict, key_text, plain

MAX_DEPTH = 100
"""How many containers deep the walk goes; torch.save itself gives up at Python's recursion limit."""

# patterns stay text until a word is held against them: compiling them takes longer than reading most files
_EMA = r"(?i)(^|[^a-z])(ema|swa|shadow|averaged?|polyak|teacher)([^a-z]|$)"
_NOT_MODEL = r"(?i)(^|_)(rng|random|scheduler|scaler|sampler|replay|optim)"
_EPOCH = r"(?i)^(cur(rent)?_?|last_?|start_?|n_?|num_?)?epochs?$"
_STEP = r"(?i)^(cur(rent)?_?|global_?|last_?|n_?|num_?)?(steps?|iter(ation)?s?|it|step_count|updates)$"
_LOSS = r"(?i)loss"
_METRIC = (
    r"(?i)(^|_)(acc(uracy)?\d*|top\d?|prec\d*|precision|recall|f1|auc|auroc|map|miou|iou|dice|psnr|ssim|bleu|wer|cer"
    r"|fid|perplexity|ppl|score|metric|fitness|error|mae|mse|rmse|reward)s?($|_)|^best_|^(val|valid|test)_"
)
_ARGUMENTS = r"(?i)^(args?|arguments|config(uration)?|cfg|hparams|hyper_?parameters|opts?|options|params)$"
_RATE = r"(?i)^(lr|learning_rate)$"
_LABELS = (
    ("epoch", _EPOCH),
    ("step", _STEP),
    ("arguments", _ARGUMENTS),
    ("loss", _LOSS),
    ("metric", _METRIC),
    ("lr", _RATE),
)
# a union that is written out where it is asked for is made anew each time
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_NUMBERS = (int, float)
_ONE_VALUE = (int, float, TensorInfo, type(None))
_NAMES = (str, int)
_SEQUENCES = (list, tuple)
_CONTAINERS = (dict, list, tuple, Call, Module)
_SCHEDULER_KEYS = frozenset({"_step_count", "_last_lr", "base_lrs", "milestones", "_get_lr_called_within_step"})


@dataclass(slots=True)
class Survey:
    """What the walk over a file's values has found; see `survey`."""

    kind: str = "object"
    state_dicts: list[StateDict] = field(default_factory=list)
    module: Module | None = None
    module_path: KeyPath = ()
    training: TrainingState | None = None
    loose: list[tuple[KeyPath, TensorInfo]] = field(default_factory=list)
    too_deep: KeyPath | None = None


def survey(root: object, budget: Budget | None = None) -> Survey:
    """Walk the values from *root*, breadth first and each object once, and say what is what.

    Values more than `MAX_DEPTH` deep are left out; *too_deep* is then the path to the first of them. *budget*
    bounds the walk where values are shared.
    """
    spend = (budget or Budget(1 << 20)).spend
    found = Survey()
    optimizers: list[Optimizer] = []
    schedulers: list[KeyPath] = []
    rng: list[KeyPath] = []
    seen: set[int] = set()
    level: list[tuple[object, KeyPath]] = [(root, ())]
    while level:
        below: list[tuple[object, KeyPath]] = []
        for raw, path in level:
            value = plain(raw)
            if isinstance(value, TensorInfo):
                found.loose.append((path, value))
                continue
            if isinstance(value, Module):
                if found.module is None:
                    found.module, found.module_path = value, path
                elif id(value) not in seen:
                    made = _of_module(value, path)
                    spend(len(made.entries) + len(made.metadata or ()))
                    found.state_dicts.append(made)
                seen.add(id(value))
                continue
            if type(value) in _PLAIN or id(value) in seen:
                continue
            seen.add(id(value))
            if path and isinstance(path[-1], str) and "rng" in path[-1].lower():
                rng.append(path)
            optimizer = _optimizer(value, path, spend)
            if optimizer is not None:
                optimizers.append(optimizer)
                found.state_dicts.append(_of_optimizer(optimizer, value))
                continue
            if len(path) >= MAX_DEPTH:
                found.too_deep = found.too_deep or path
                continue
            children = list(children_of(value, path, spend))
            if isinstance(value, dict):
                if _SCHEDULER_KEYS & value.keys():
                    schedulers.append(path)
                if _is_state_dict(value, children):
                    found.state_dicts.append(_state_dict(value, path))
                    children = [(c, p) for c, p in children if not isinstance(c, TensorInfo)]
            below += children
        level = below
    taken = {found.module_path, *(state_dict.path for state_dict in found.state_dicts)}
    found.training = _training(root, optimizers, schedulers, rng, taken)
    found.kind = _kind(root, found)
    return found


def children_of(value: object, path: KeyPath, spend: Callable[[int], None]) -> Iterator[tuple[object, KeyPath]]:
    """What the container or object *value*, which stands at *path*, holds, each with its own path.

    The arguments of a call stand where the call does. *spend* is told how many there are.
    """
    if isinstance(value, dict):
        spend(len(value))
        for key, child in value.items():
            yield plain(child), (*path, _step(key))
    elif isinstance(value, _SEQUENCES):
        spend(len(value))
        for index, child in enumerate(value):
            yield plain(child), (*path, index)
    elif type(value) is Call:
        attributes = value.attributes
        spend(len(attributes) + len(value.entries or ()) + len(value.items or ()) + len(value.arguments))
        for key, child in attributes.items():
            yield plain(child), (*path, key_text(key))
        for key, child in value.entries or ():
            yield plain(child), (*path, _step(key))
        for index, child in enumerate(value.items or ()):
            yield plain(child), (*path, index)
        for child in value.arguments:
            yield plain(child), path


def value_at(root: object, path: KeyPath) -> object:
    """The value that `survey` found at *path* below *root*, which is the first of several; None where there is none."""
    level = [plain(root)]
    seen: set[int] = set()
    for step in path:
        below: list[object] = []
        for value in level:
            if isinstance(value, dict) and type(step) is str:
                below += [plain(value[step])] if step in value else []
                continue
            for child, place in children_of(value, (), _free):
                if place:
                    below += [child] if place[0] == step else []
                elif id(child) not in seen:  # an argument of a call, whose place is the call's own
                    seen.add(id(child))
                    level.append(child)
        level = below
    return level[0] if level else None


def _free(amount: int) -> None:
    """Nothing to pay: the walk along one path."""


def _step(key: object) -> object:
    """A mapping's key as a step of a path."""
    return key if isinstance(key, _NAMES) else key_text(key)


def _is_state_dict(value: Mapping[object, object], children: list[tuple[object, KeyPath]]) -> bool:
    """Whether names map mostly to tensors; a few tensors beside nested mappings are a run's loose values."""
    tensors = containers = dotted = 0
    for (child, _), key in zip(children, value, strict=True):
        if type(key) is not str:
            return False
        if isinstance(child, TensorInfo):
            tensors += 1
            dotted += "." in key
        elif isinstance(child, _CONTAINERS) and child and not is_extra_state(key):
            containers += 1
    return tensors > containers or (tensors > 0 and dotted > 0)


def _state_dict(value: dict[object, object], path: KeyPath) -> StateDict:
    entries = {str(key): plain(child) for key, child in value.items()}
    metadata = None
    if isinstance(value, OrderedDict) and isinstance(value.state, dict):
        versions = plain(value.state.get("_metadata"))
        if isinstance(versions, dict):
            metadata = {key_text(key): plain(version) for key, version in versions.items()}
    return StateDict(path, role_of(path, entries), entries, metadata)


def role_of(path: KeyPath, names: Mapping[str, object]) -> Role:
    """What a state_dict at *path* is for, as far as the words in the path and in the *names* tell."""
    words = [part for part in path if isinstance(part, str)]
    roles = [_role_by(word) for word in words]
    if "ema" in roles:
        return "ema"
    if "other" in roles:
        return "other"
    if not any(isinstance(v, TensorInfo) and v.shape for v in names.values()):
        return "other" if words else "model"
    return "model"


# the same words come in many files


@lru_cache(maxsize=256)
def _role_by(word: str) -> Role:
    """The role that one step of a path gives to what stands below it."""
    return "ema" if re.search(_EMA, word) else "other" if re.search(_NOT_MODEL, word) else "model"


@lru_cache(maxsize=256)
def _label(key: str) -> str:
    """What of a run a key names; "" where it names nothing that is known."""
    return next((label for label, pattern in _LABELS if re.search(pattern, key)), "")


def _of_module(module: Module, path: KeyPath) -> StateDict:
    made = module.state_dict()
    return StateDict(path, role_of(path, made.entries), made.entries, made.metadata)


def _optimizer(value: object, path: KeyPath, spend: Callable[[int], None]) -> Optimizer | None:
    """An optimizer's state_dict, or a pickled optimizer object: ``state`` beside ``param_groups``."""
    algorithm = None
    mapping: Mapping[object, object] = value if isinstance(value, dict) else {}
    if type(value) is Call:
        mapping, algorithm = value.attributes, value.class_name.rpartition(".")[2] or None
    groups, state = plain(mapping.get("param_groups")), plain(mapping.get("state"))
    if not isinstance(groups, list) or not isinstance(state, dict):
        return None
    read: list[ParamGroup] = []
    position = 0
    indexes: dict[object, int] = {}
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            return None
        spend(sum(len(item) for item in group.values() if isinstance(item, _SEQUENCES)))
        spend(len(group))
        params: list[int | str] = []
        for param in group["params"]:
            if isinstance(param, _NAMES):
                params.append(param)
            else:  # the optimizer object itself: it holds the parameters, not their numbers
                params.append(position)
                indexes[_identity(param)] = position
            position += 1
        names = group.get("param_names")
        names = tuple(map(key_text, names)) if isinstance(names, list) else None
        spend(len(names or ()))
        options = {key_text(k): plain(v) for k, v in group.items() if k not in ("params", "param_names")}
        read.append(ParamGroup(tuple(params), names, options))
    entries: dict[int | str, dict[str, object]] = {}
    for key, per_parameter in state.items():
        index = key if isinstance(key, _NAMES) else indexes.get(_identity(key))
        per_parameter = plain(per_parameter)
        if index is not None and isinstance(per_parameter, dict):
            spend(1 + len(per_parameter))
            entries[index] = {key_text(k): plain(v) for k, v in per_parameter.items()}
    return Optimizer(path, tuple(read), entries, algorithm or _algorithm(read, entries))


def _identity(parameter: object) -> object:
    return id(plain(parameter))


_ALGORITHMS = (
    # (options that only it has, its name); torch/optim, each class's defaults
    ({"betas", "decoupled_weight_decay"}, "Adam or AdamW"),
    ({"betas", "amsgrad"}, "Adam or AdamW"),
    ({"betas", "momentum_decay"}, "NAdam or RAdam"),
    ({"momentum", "dampening", "nesterov"}, "SGD"),
    ({"alpha", "centered"}, "RMSprop"),
    ({"lr_decay", "initial_accumulator_value"}, "Adagrad"),
    ({"rho", "eps"}, "Adadelta"),
    ({"etas", "step_sizes"}, "Rprop"),
    ({"lambd", "alpha", "t0"}, "ASGD"),
    ({"history_size", "line_search_fn"}, "LBFGS"),
    ({"beta2_decay"}, "Adafactor"),
    ({"ns_coefficients"}, "Muon"),
    ({"betas", "weight_decay"}, "an Adam variant"),
)


def _algorithm(groups: list[ParamGroup], state: Mapping[int | str, Mapping[str, object]]) -> str | None:
    options = groups[0].options if groups else {}
    if options.get("decoupled_weight_decay") is True:
        return "AdamW"
    if options.get("decoupled_weight_decay") is False:
        return "Adam"
    return next((name for keys, name in _ALGORITHMS if keys <= options.keys()), None)


def _of_optimizer(optimizer: Optimizer, value: object) -> StateDict:
    """The optimizer's tensors by dotted names: its state, then what its groups hold.

    Groups hold the parameters themselves where the optimizer object was saved, and options that are tensors.
    """
    entries: dict[str, object] = {}
    for index, state in optimizer.state.items():
        for key, item in state.items():
            entries[f"state.{index}.{key}"] = item
    mapping = value.attributes if type(value) is Call else value
    groups = plain(mapping["param_groups"]) if isinstance(mapping, dict) else None
    for number, group in enumerate(groups if isinstance(groups, list) else ()):
        for key, raw in group.items():
            items = plain(raw)
            name = f"param_groups.{number}.{key_text(key)}"
            if isinstance(items, TensorInfo):
                entries[name] = items
            elif isinstance(items, _SEQUENCES):
                tensors = ((i, plain(item)) for i, item in enumerate(items))
                entries.update((f"{name}.{i}", item) for i, item in tensors if isinstance(item, TensorInfo))
    return StateDict(optimizer.path, "optimizer", entries)


def _training(
    root: object, optimizers: list[Optimizer], schedulers: list[KeyPath], rng: list[KeyPath], taken: set[KeyPath]
) -> TrainingState | None:
    """The run's own values: those at the root, and one mapping below it.

    What stands at the paths *taken* is tensors, whatever it is called: an optimizer ``opt``, weights ``params``.
    """
    named: dict[str, Found] = {}
    metrics: dict[str, Found] = {}
    for key, value, path in _scalars(root):
        if isinstance(value, TensorInfo) and value.shape:
            continue
        label = _label(key)
        if label in ("epoch", "step", "lr"):
            if _is_number(value):
                named.setdefault(label, Found(value, path))
        elif label == "arguments":
            if path not in taken and not isinstance(value, _ONE_VALUE):
                named.setdefault(label, Found(value, path))
        elif label and _is_value(value):
            if label == "loss" and (key.lower() == "loss" or "loss" not in named):
                named["loss"] = Found(value, path)
            metrics[key] = Found(value, path)
    for number, optimizer in enumerate(optimizers):
        for index, group in enumerate(optimizer.groups):
            if number == index == 0 and "lr" in group.options:
                named["lr"] = Found(group.options["lr"], (*optimizer.path, "param_groups", 0, "lr"))
    if not named and not metrics and not optimizers and not schedulers and not rng:
        return None
    return TrainingState(
        **named, metrics=metrics, optimizers=tuple(optimizers), schedulers=tuple(schedulers), rng=tuple(rng)
    )


def _scalars(root: object) -> Iterator[tuple[str, object, KeyPath]]:
    if type(root) is Call:
        root = root.attributes
    if not isinstance(root, dict):
        return
    for key, raw in root.items():
        value = plain(raw)
        if type(key) is str:
            yield key, value, (key,)
    for key, raw in root.items():
        value = plain(raw)
        if type(key) is str and isinstance(value, dict) and len(value) <= 64:
            for inner, below in value.items():
                if type(inner) is str and _is_value(plain(below)) and not _SCHEDULER_KEYS & value.keys():
                    yield inner, plain(below), (key, inner)


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _is_value(value: object) -> bool:
    """A number, or a tensor that holds just one."""
    return _is_number(value) or (isinstance(value, TensorInfo) and value.shape == () and value.numel == 1)


def _kind(root: object, found: Survey) -> str:
    root = plain(root)
    if isinstance(root, Module):
        return "model"
    if isinstance(root, TensorInfo):
        return "tensor"
    run = found.training
    if run is not None and any(not optimizer.path for optimizer in run.optimizers):
        return "optimizer"
    models = [s for s in found.state_dicts if s.role in ("model", "ema")]
    running = run is not None and (run.optimizers or run.schedulers or run.epoch or run.step or run.loss)
    if running and (models or found.module or found.state_dicts):
        return "training"
    if found.module is not None:
        return "model"
    if models:
        return "state_dict" if len(models) == 1 else "state_dicts"
    if found.loose:
        return "tensors"
    return "object"
