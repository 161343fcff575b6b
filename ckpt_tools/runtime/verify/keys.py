"""Names, shapes and types: what ``load_state_dict`` would say, what ``strict=False`` would not, and what would help."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from ckpt_tools.analysis.holding import AUXILIARY, last_layer
from ckpt_tools.atomic import replacing
from ckpt_tools.checkpoint import StateDict
from ckpt_tools.convert.plan import Names
from ckpt_tools.convert.run import carry_out, prepare
from ckpt_tools.errors import CkptError
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.locate import locate, model_names
from ckpt_tools.runtime.reload import LoadReport, Mismatch, rehearse
from ckpt_tools.runtime.verify.names import Renaming, renamed, renaming
from ckpt_tools.runtime.verify.origins import adapter, of_shapes, origins
from ckpt_tools.runtime.verify.subject import Subject, head_of, matches, percent
from ckpt_tools.verification.results import Check, Problem, worst_first

MOSTLY = 0.05
"""Below this share of parameter elements a class is another one, not one that has changed."""


def keys(subject: Subject) -> Check:
    """Whether every tensor of the class has one of its name and shape in the file, and the other way round."""
    _, state_dict = subject.file()
    model = subject.built()
    job = subject.job
    if job.key_map:
        if (wrong := _wrong_key_map(state_dict, job.key_map)) is not None:
            return Check("keys", "the key map cannot be used", [wrong])
        state_dict = renamed(state_dict, job.key_map)
    try:
        as_it_is = rehearse(model, state_dict, exchange=False, build=subject.build)
    except CkptError as error:
        return Check("keys", "the class cannot be compared with the file", [_refused(error)])
    problems: list[Problem] = []
    way: Renaming | None = None
    report = as_it_is
    subject.renamed = state_dict
    if as_it_is.missing or as_it_is.unexpected:
        way = renaming(state_dict.tensors, _shapes(model))
    if way is not None:
        subject.renamed = renamed(state_dict, way.names)
        try:
            report = rehearse(model, subject.renamed, exchange=False, build=subject.build)
        except CkptError as error:
            return Check("keys", "the class cannot be compared with the file", [_refused(error)])
        problems += _of_names(way, as_it_is, report, model)
    names = _composed(job.key_map, way.names if way is not None else {})
    subject.names = {new: old for old, new in names.items()}
    subject.fits = report
    problems += _of_tensors(report, subject, model)
    if any(problem.code in _SIBLINGS for problem in problems):
        problems = [*_sibling(subject), *problems]
    share = loaded_share(report, model)
    tolerated = share >= job.min_loaded - 1e-12 and not report.mismatched
    if tolerated and job.min_loaded < 1:
        problems = [_milder(p) if p.code in _INCOMPLETE else p for p in problems]
    missing = [name for name in report.missing if not matches(name, job.allow_missing)]
    subject.usable = (not missing or tolerated) and not report.mismatched and share > MOSTLY
    if job.write_fixed is not None or job.write_key_map is not None:
        problems += _write(subject, names, report)
    facts = {
        "loaded": len(report.loaded),
        "of": _total(model),
        "share": share,
        "missing": list(report.missing),
        "unexpected": list(report.unexpected),
        "mismatched": [_mismatch(m) for m in report.mismatched],
        "converted": [_mismatch(m) for m in report.converted],
        "supplied": list(report.supplied),
        "renaming": dict(way.names) if way is not None else {},
        "as_it_is": {"loaded": len(as_it_is.loaded), "share": loaded_share(as_it_is, model)},
    }
    return Check("keys", _headline(as_it_is, report, way, model), worst_first(problems), facts)


def _wrong_key_map(state_dict: StateDict, names: Mapping[str, str]) -> Problem | None:
    """What is wrong with the names that the user gives."""
    absent = [name for name in names if name not in state_dict.entries]
    if absent:
        what = f"the key map renames what the file does not have: {listed(absent, 3)}"
        return Problem("key-map-names", "error", what, "See that it is the key map of this file")
    given = Counter(names.get(name, name) for name in state_dict.entries)
    twice = [name for name, times in given.items() if times > 1]
    if twice:
        what = f"the key map gives more than one tensor the name {listed(twice, 3)}"
        return Problem("key-map-names", "error", what, "Name each tensor once")
    return None


def _composed(first: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """What two renamings one after the other come to: changed names only."""
    names = {old: then.get(new, new) for old, new in first.items()}
    names |= {old: new for old, new in then.items() if old not in first.values()}
    return {old: new for old, new in names.items() if old != new}


# --- numbers


def _lazy(tensor: object) -> bool:
    return bool(nn.parameter.is_lazy(tensor))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    own = model.state_dict(keep_vars=True)
    return {n: tuple(t.shape) for n, t in own.items() if isinstance(t, torch.Tensor) and not _lazy(t)}


def _total(model: nn.Module) -> int:
    return len(model.state_dict(keep_vars=True))


def loaded_share(report: LoadReport, model: nn.Module) -> float:
    """The share of the elements of the class's parameters that the file has, shared ones once."""
    loaded = set(report.loaded)
    have = total = 0
    counted: dict[int, bool] = {}
    sizes: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not _lazy(parameter):
            counted[id(parameter)] = counted.get(id(parameter), False) or name in loaded
            sizes[id(parameter)] = parameter.numel()
    for key, is_loaded in counted.items():
        total += sizes[key]
        have += sizes[key] if is_loaded else 0
    return have / total if total else float(not report.missing)


def _headline(as_it_is: LoadReport, report: LoadReport, way: Renaming | None, model: nn.Module) -> str:
    total = _total(model)

    def told(found: LoadReport) -> str:
        share = percent(round(loaded_share(found, model) * 10**9), 10**9)
        return f"{len(found.loaded):,} of {count(total, 'tensor')}, {share} of parameter elements"

    text = f"loaded {told(report)}"
    if way is not None:
        text = f"loaded {told(as_it_is)}; with {'its' if not way.guess else 'guessed'} names mended {told(report)}"
    if report.supplied:
        text += f"; {count(len(report.supplied), 'counter')} of BatchNorm set to 0 by torch"
    return text


def _mismatch(mismatch: Mismatch) -> dict[str, object]:
    return {
        "name": mismatch.name,
        "file": {"shape": list(mismatch.file_shape), "dtype": mismatch.file_dtype},
        "class": {"shape": list(mismatch.class_shape), "dtype": mismatch.class_dtype},
    }


# --- problems

_NEEDLESS = (
    ("averaged-model", r"(^|\.)n_averaged$", "the counter of an AveragedModel, which the class is not"),
    (
        "constant-buffers",
        # timm and transformers: buffers with persistent=False now, which were saved once
        r"(^|\.)(attn_mask|relative_position_index|relative_coords_table|position_ids|attn\.masked_bias)$",
        "constants that the class makes itself, which older versions of its library saved",
    ),
    (
        "profiler-buffers",
        # thop/profile.py registers them in every module that it counts
        r"(^|\.)total_(ops|params)$",
        "counts that a profiler (thop) put into the model that was saved",
    ),
)
"""Tensors that may be left out of a file: the code, the names, and what they are."""

_INCOMPLETE = {
    "missing-tensors",
    "head-missing",
    "batchnorm-statistics-missing",
    "auxiliary-heads",
    "batchnorm-counters-missing",
}


def _milder(problem: Problem) -> Problem:
    return Problem(problem.code, "warning", problem.message, problem.remedy)


def _refused(error: CkptError) -> Problem:
    return Problem("class-refuses", "error", error.problem, error.remedy or "")


def _of_names(way: Renaming, before: LoadReport, after: LoadReport, model: nn.Module) -> list[Problem]:
    prefixes = [
        s for s in way.steps if s.code in ("wrapped-names", "stacked-wrappers", "lightning-names", "prefixed-names")
    ]
    steps = [(step.code, step.what) for step in way.steps if step not in prefixes]
    if len(prefixes) == 1:
        steps.insert(0, (prefixes[0].code, prefixes[0].what))
    elif prefixes:
        old, new = next((o, n) for o, n in way.names.items() if o.endswith(n) or "." in o)
        stack = old.removesuffix(new) if old.endswith(new) else old
        words = "; ".join(step.what.partition(" (")[2].partition(")")[0] or step.what for step in prefixes)
        steps.insert(0, ("stacked-wrappers", f"names begin with {stack}, stacked: {words}; in the class they do not"))
    reached = f"{len(after.loaded):,} of {count(_total(model), 'tensor')}"
    example = next(iter(way.names.items()))
    remedies = [
        f"rename {example[0]} to {example[1]}{' and so on' if len(way.names) > 1 else ''}: then {reached} load",
        "--write-fixed FILE writes the file so, --write-key-map FILE the names",
    ]
    pattern = _one_liner(way)
    if pattern:
        remedies.insert(1, pattern)
    if way.guess:
        remedies.insert(0, "a guess by order and shapes: see that it is right")
    message = f"{_silent(before, model)}" if not before.exact else ""
    return [
        Problem(code, "error", f"{what}{_then(what, message) if at == 0 else ''}", "; ".join(remedies))
        for at, (code, what) in enumerate(steps)
    ]


def _then(what: str, message: str) -> str:
    # a prefix ends with a full stop of its own
    return f"{' ' if what.endswith('.') else '. '}{message}" if message else ""


def _one_liner(way: Renaming) -> str:
    """What does it in Python, where that is one line."""
    if all(old.endswith(new) for old, new in way.names.items()):
        prefixes = {old.removesuffix(new) for old, new in way.names.items()}
        if len(prefixes) == 1:
            return f"in Python: {{k.removeprefix({prefixes.pop()!r}): v for k, v in state_dict.items()}}"
    if all(new.endswith(old) for old, new in way.names.items()):
        prefixes = {new.removesuffix(old) for old, new in way.names.items()}
        if len(prefixes) == 1:
            return f"in Python: {{{prefixes.pop()!r} + k: v for k, v in state_dict.items()}}"
    return ""


def _silent(report: LoadReport, model: nn.Module) -> str:
    """What ``load_state_dict(strict=False)`` does with the file as it is, and does not tell."""
    if report.mismatched:
        return "load_state_dict refuses the file, with strict=False too, for its shapes"
    kept = len(report.missing)
    parts = [f"leave {count(kept, 'tensor')} of the class as made"] if kept else []
    if report.unexpected:
        parts.append(f"drop {count(len(report.unexpected), 'tensor')} of the file")
    share = percent(round(loaded_share(report, model) * 10**9), 10**9)
    return (
        f"load_state_dict refuses the file; with strict=False it would load {len(report.loaded):,} of "
        f"{count(_total(model), 'tensor')} ({share} of parameter elements), {' and '.join(parts)}, without a word"
    )


def _of_tensors(report: LoadReport, subject: Subject, model: nn.Module) -> list[Problem]:
    job = subject.job
    problems: list[Problem] = []
    missing = [name for name in report.missing if not matches(name, job.allow_missing)]
    unexpected = [name for name in report.unexpected if not matches(name, job.allow_unexpected)]
    excused = len(report.missing) + len(report.unexpected) - len(missing) - len(unexpected)
    if excused:
        problems.append(
            Problem("allowed", "note", f"{count(excused, 'name')} that the file and the class do not share: allowed")
        )
    alone = adapter(unexpected) if not report.loaded else None
    if alone is not None:
        return [*problems, alone]
    if loaded_share(report, model) <= MOSTLY and report.missing and (report.unexpected or report.mismatched):
        return [*problems, _another_class(report, subject, model)]
    if report.mismatched:
        problems += _of_shapes(report.mismatched, subject, model)
    auxiliary = [name for name in missing if name.startswith(AUXILIARY)]
    if auxiliary:
        options = _switch(auxiliary, False)
        problems.append(
            Problem(
                "auxiliary-heads",
                "error",
                f"the class has an auxiliary head that the file lacks ({count(len(auxiliary), 'tensor')}: "
                f"{listed(auxiliary, 3)}); only training uses it. {_silent(report, model)}",
                f"Build the class without: {options}",
            )
        )
        missing = [name for name in missing if name not in auxiliary]
    extra = [name for name in unexpected if name.startswith(AUXILIARY)]
    if extra and not auxiliary:
        problems.append(
            Problem(
                "auxiliary-heads",
                "error",
                f"the file has an auxiliary head that the class lacks ({count(len(extra), 'tensor')}: "
                f"{listed(extra, 3)})",
                f"Build the class with it: {_switch(extra, True)}; or --allow-unexpected "
                f"'{extra[0].partition('.')[0]}.*'",
            )
        )
        unexpected = [name for name in unexpected if name not in extra]
    counters = [name for name in missing if name.endswith("num_batches_tracked")]
    if counters:
        problems.append(
            Problem(
                "batchnorm-counters-missing",
                "error",
                f"the file lacks {count(len(counters), 'counter')} of BatchNorm ({listed(counters, 2)}), although its "
                "metadata says that it is of a torch that saves them, so that load_state_dict does not supply them",
                "They count batches and are used only where momentum is None: add zeros, or --allow-missing "
                "'*num_batches_tracked'",
            )
        )
        missing = [name for name in missing if name not in counters]
    if report.supplied:
        problems.append(
            Problem(
                "batchnorm-counters-supplied",
                "note",
                f"the file is from before BatchNorm counted batches, or has no metadata: torch sets "
                f"{count(len(report.supplied), 'counter')} to 0",
            )
        )
    for code, needless, words in _NEEDLESS:
        found = [name for name in unexpected if re.search(needless, name)]
        if found:
            verb = "is" if len(found) == 1 else "are"
            problems.append(
                Problem(
                    code,
                    "error",
                    f"{listed(found, 3)} {verb} in the file alone: {words}",
                    f"Load without {'it' if len(found) == 1 else 'them'}; --write-fixed FILE leaves "
                    f"{'it' if len(found) == 1 else 'them'} out, --allow-unexpected GLOB lets it be",
                )
            )
            unexpected = [name for name in unexpected if name not in found]
    assert subject.renamed is not None
    file = {tensor.name: tensor.shape for tensor in subject.renamed.tensors}
    for origin in origins(missing, unexpected, _shapes(model), file):
        problem = origin.problem
        problems.append(replace(problem, message=f"{problem.message}. {_silent(report, model)}"))
        missing = [name for name in missing if name not in origin.names]
        unexpected = [name for name in unexpected if name not in origin.names]
    if missing:
        problems.append(
            Problem(
                "missing-tensors",
                "error",
                f"{count(len(missing), 'tensor')} of the class {'is' if len(missing) == 1 else 'are'} not in the file: "
                f"{listed(missing)}. {_silent(report, model)}",
                "--allow-missing GLOB lets names be missing",
            )
        )
    if unexpected:
        problems.append(
            Problem(
                "unexpected-tensors",
                "error",
                f"{count(len(unexpected), 'tensor')} of the file {'has' if len(unexpected) == 1 else 'have'} no place "
                f"in the class: {listed(unexpected)}" + ("" if missing else f". {_silent(report, model)}"),
                "--allow-unexpected GLOB lets names be there",
            )
        )
    if report.converted:
        problems.append(_of_types(report.converted))
    return problems


def _of_types(converted: Sequence[Mismatch]) -> Problem:
    pairs = sorted({(m.file_dtype, m.class_dtype) for m in converted})
    told = ", ".join(f"{a} in the file, {b} in the class" for a, b in pairs)
    return Problem(
        "dtype-converted",
        "warning",
        f"{count(len(converted), 'tensor')} {'is' if len(converted) == 1 else 'are'} {told}: load_state_dict converts "
        "them without a word, and the model computes in the class's type",
        f"For the file's type, model.to(torch.{pairs[0][0]}) after loading, or load_state_dict(…, assign=True)",
    )


def _of_shapes(mismatched: Sequence[Mismatch], subject: Subject, model: nn.Module) -> list[Problem]:
    assert subject.renamed is not None
    head = head_of(subject.renamed.tensors)
    layer = head.name if head is not None else ""
    of_head = [m for m in mismatched if m.name.rpartition(".")[0] == layer and m.file_shape[1:] == m.class_shape[1:]]
    rest = [m for m in mismatched if m not in of_head]
    problems = []
    if of_head:
        theirs, ours = of_head[0].file_shape[0], of_head[0].class_shape[0]
        option = _parameter_for(subject, ours, theirs)
        problems.append(
            Problem(
                "head-classes",
                "error",
                f"the head `{layer}` has {theirs:,} outputs in the file and {ours:,} in the class: "
                "load_state_dict refuses it, with strict=False too",
                f"Build the class with {theirs:,} outputs{option}; or, to train a new head, load all but the head: "
                f"leave {layer}.* out of the state_dict",
            )
        )
    problems += of_shapes(rest, model)
    return problems


def _parameter_for(subject: Subject, ours: int, theirs: int) -> str:
    """The option that sets the number of classes, where one can be told."""
    for name, value in subject.arguments.items():
        if value == ours:
            return f": --kwargs {name}={theirs}"
    if subject.job.model.startswith(("torchvision:", "timm:")):
        return f": --kwargs num_classes={theirs}"
    return ""


def _switch(names: Sequence[str], on: bool) -> str:
    """The option of torchvision's classes for the auxiliary head of these names."""
    name = "aux_loss" if names[0].startswith("aux_classifier") else "aux_logits"
    return f"--kwargs {name}={str(on).lower()}"


def _another_class(report: LoadReport, subject: Subject, model: nn.Module) -> Problem:
    _, state_dict = subject.file()
    share = percent(round(loaded_share(report, model) * 10**9), 10**9)
    said = f"; the file itself says {subject.module.class_name}" if subject.module is not None else ""
    theirs = list(state_dict.entries)[:3]
    ours = list(model.state_dict(keep_vars=True))[:3]
    return Problem(
        "wrong-class",
        "error",
        f"this is no file of {type(model).__name__}: {share} of parameter elements find a tensor of their name and "
        f"shape{said}. The file begins with {', '.join(theirs)}; the class with {', '.join(ours)}",
        "Name the class that the file was saved from; ckpt inspect shows its layers",
    )


_SIBLINGS = {"wrong-class", "shape-mismatch", "missing-tensors", "unexpected-tensors"}
"""What the model of another name in the same library may explain."""

MAX_SIBLINGS = 12


def _sibling(subject: Subject) -> Iterator[Problem]:
    """The model of the same library, of a name like this one's, that the file fits, but perhaps for the head."""
    job = subject.job
    library, _, name = job.model.partition(":")
    if library not in ("torchvision", "timm") or subject.renamed is None:
        return
    known = model_names(library)
    _, as_it_is = subject.file()
    files = [{tensor.name: tensor.shape for tensor in each.tensors} for each in (as_it_is, subject.renamed)]
    for other in difflib.get_close_matches(name, known, MAX_SIBLINGS + 1, 0.5):
        if other == name:
            continue
        try:
            shapes = _shapes(locate(f"{library}:{other}", job.args, subject.arguments))
        except CkptError:
            continue
        head = last_layer(shapes)
        apart = min((_apart(file, shapes) for file in files), key=len)
        if apart <= {head}:
            yield Problem(
                "sibling-model",
                "error",
                f"names and shapes are those of {library}:{other}{', but for its head' if apart else ''}",
                f"--model {library}:{other}",
            )
            return


def _apart(a: Mapping[str, tuple[int, ...]], b: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The layers that differ."""
    return {name.rpartition(".")[0] for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


# --- writing what helps


def _write(subject: Subject, names: Mapping[str, str], report: LoadReport) -> list[Problem]:
    job = subject.job
    dropped = [name for name in report.unexpected if any(re.search(needless, name) for _, needless, _ in _NEEDLESS)]
    if not names and not dropped:
        return [Problem("nothing-to-mend", "note", "no renaming makes more tensors fit, so nothing was written")]
    old = {new: name for name, new in names.items()}
    written = []
    if job.write_key_map is not None:
        with replacing(job.write_key_map) as file:
            file.write((json.dumps(dict(names), indent=1, ensure_ascii=False) + "\n").encode())
        written.append(job.write_key_map)
    if job.write_fixed is not None:
        drop = tuple(glob.escape(old.get(name, name)) for name in dropped)
        select = job.select
        conversion, watch = prepare(
            job.path, job.write_fixed, select=select, names=Names(drop=drop, mapping=names), force=job.force
        )
        carry_out(conversion, watch)
        written.append(job.write_fixed)
    return [Problem("mended", "note", f"written: {', '.join(written)}")]
