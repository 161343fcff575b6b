"""P: what the policy file asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from ckpt_tools.analysis.counting import distinct
from ckpt_tools.analysis.summary import pick, subject_of, weights
from ckpt_tools.analysis.trainability import parameters_of
from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.policy import Requirement, matches
from ckpt_tools.audit.rule import Rule, rule
from ckpt_tools.audit.subject import Subject
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError
from ckpt_tools.report import count, listed, shortened, size


def _asked(subject: Subject) -> Iterator[tuple[Requirement, Checkpoint]]:
    """The requirements that are for the file, where it is a checkpoint."""
    for requirement in subject.options.policy.requirements:
        if subject.checkpoint is not None and any(matches(subject.path, glob) for glob in requirement.paths):
            yield requirement, subject.checkpoint


def _is_asked(subject: Subject) -> bool:
    return bool(subject.options.policy.requirements) and any(True for _ in _asked(subject))


def _is_locked(subject: Subject) -> bool:
    return subject.options.baseline is not None


def _fits(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


@rule("P101", "expired-waiver", "error")
def expired_waiver(subject: Subject) -> Iterator[Finding]:
    """A waiver in the policy that covers the file is past its date, and no longer holds.

    Why: a waiver is a promise to mend something; without an end it becomes the rule.

    Example: ``expires = 2026-06-30`` in July.

    Remedy: mend what was waived, or renew the waiver with a reason and a new date.
    """
    for waiver in subject.options.policy.waivers:
        if waiver.expired(subject.options.today) and matches(subject.path, waiver.path):
            yield subject.finding(
                f"the waiver of {waiver.code} for {waiver.path} expired on {waiver.expires}: {waiver.reason}",
                evidence={"code": waiver.code, "path": waiver.path, "expires": str(waiver.expires)},
            )


@rule("P102", "global-added", "error", when=_is_locked)
def global_added(subject: Subject) -> Iterator[Finding]:
    """A pickle names a global that the baseline has not locked for the file.

    Why: weights are retrained, but what a file needs in order to load seldom changes; where it does, someone
    should look. Of a file that the baseline does not know, those count that torch's weights_only would refuse.

    Example: a checkpoint that was a state_dict and now names ``mypackage.trainer.State``.

    Remedy: find out where the global comes from; if it is meant, write the baseline again.
    """
    baseline = subject.options.baseline
    if baseline is None:
        return
    locked = baseline.locked(subject.path)
    for verdict in subject.all_verdicts:
        for name in verdict.names:
            if (name.name not in locked) if locked is not None else not name.allowed:
                yield subject.finding(
                    f"{name.name} is new" if locked is not None else f"{name.name}, in a file that is new",
                    member=verdict.member,
                    offset=name.offset,
                    evidence={"global": name.name},
                )


@rule("P103", "global-removed", "note", when=_is_locked)
def global_removed(subject: Subject) -> Iterator[Finding]:
    """A global that the baseline has locked for the file is no longer named.

    Why: the lock should be as tight as the file, or it lets the global come back unseen.

    Example: a checkpoint that once held an ``argparse.Namespace``.

    Remedy: write the baseline again.
    """
    locked = subject.options.baseline.locked(subject.path) if subject.options.baseline is not None else None
    named = {name.name for verdict in subject.all_verdicts for name in verdict.names}
    for gone in locked or ():
        if gone not in named:
            yield subject.finding(f"{gone} is gone", evidence={"global": gone})


@rule("P201", "format-not-allowed", "error", when=_is_asked)
def format_not_allowed(subject: Subject) -> Iterator[Finding]:
    """The file is of a format that the policy does not allow.

    Why: a project that has settled on safetensors does not want pickles to come back.

    Example: ``formats = ["safetensors"]``, and a ``model.pt``.

    Remedy: convert it: ``ckpt convert model.pt model.safetensors``.
    """
    for asked, checkpoint in _asked(subject):
        if asked.formats and checkpoint.format not in asked.formats:
            yield subject.finding(
                f"{checkpoint.format} ({checkpoint.title}), not {' or '.join(asked.formats)}",
                evidence={"format": checkpoint.format},
            )


@rule("P202", "kind-not-allowed", "error", when=_is_asked)
def kind_not_allowed(subject: Subject) -> Iterator[Finding]:
    """The file holds something other than the policy allows.

    Why: what is released should be weights, not a training run with its optimizer.

    Example: ``kinds = ["state_dict"]``, and a checkpoint with an optimizer in it.

    Remedy: save what is asked for, or take it out: ``ckpt convert --select KEYS``.
    """
    for asked, checkpoint in _asked(subject):
        if asked.kinds and checkpoint.kind not in asked.kinds:
            yield subject.finding(
                f"its kind is {checkpoint.kind}, not {' or '.join(asked.kinds)}", evidence={"kind": checkpoint.kind}
            )


@rule("P203", "global-not-allowed", "error", when=_is_asked)
def global_not_allowed(subject: Subject) -> Iterator[Finding]:
    """A pickle names a global that the policy does not list.

    Why: what torch's weights_only takes is always allowed; whatever else a project needs can be listed, so that the
    rest is found.

    Example: ``globals = ["argparse.Namespace"]``, and a file that names ``numpy.dtype``.

    Remedy: save without the object, or add the global to the policy.
    """
    for asked, _ in _asked(subject):
        for verdict in subject.all_verdicts if asked.globals is not None else ():
            for name in verdict.names:
                if not name.allowed and not _fits(name.name, asked.globals or ()):
                    yield subject.finding(
                        f"{name.name} is not among the globals that the policy allows",
                        member=verdict.member,
                        offset=name.offset,
                        evidence={"global": name.name},
                    )


@rule("P204", "dtype-not-allowed", "error", when=_is_asked)
def dtype_not_allowed(subject: Subject) -> Iterator[Finding]:
    """Tensors are of a type that the policy does not allow.

    Why: a model for a device that has no float64, or a release that is to be bfloat16 throughout.

    Example: ``dtypes = ["float16"]``, and one float32 bias.

    Remedy: cast them: ``ckpt convert --dtype float16``.
    """
    for asked, _ in _asked(subject):
        tensors = (*subject.tensors, *subject.loose.tensors)
        wrong = [t for t in tensors if asked.dtypes and t.dtype.name not in asked.dtypes]
        for dtype in dict.fromkeys(tensor.dtype.name for tensor in wrong):
            names = [tensor.name for tensor in wrong if tensor.dtype.name == dtype]
            yield subject.finding(
                f"{count(len(names), 'tensor')} of {dtype}: {listed(names)}",
                tensor=names[0] if len(names) == 1 else "",
                evidence={"name": dtype, "tensors": names[:100]},
            )


@rule("P205", "too-large", "error", when=_is_asked)
def too_large(subject: Subject) -> Iterator[Finding]:
    """The file is larger than the policy allows.

    Why: a limit of the registry or of the device, or the sign that something is in the file that should not be.

    Example: ``max-size = "100 MB"``, and a checkpoint of 130 MB, of which 87 MB are the optimizer's.

    Remedy: leave out what is not needed, or cast: ``ckpt convert --select KEYS --dtype float16``.
    """
    for asked, _ in _asked(subject):
        if asked.max_size is not None and subject.size > asked.max_size:
            yield subject.finding(
                f"{size(subject.size)}, where {size(asked.max_size)} are allowed", evidence={"bytes": subject.size}
            )


@rule("P206", "parameter-count", "error", when=_is_asked)
def parameter_count(subject: Subject) -> Iterator[Finding]:
    """The model has fewer or more parameters than the policy allows.

    Why: the wrong variant of an architecture, or a head of the wrong size, shows in the number of parameters.

    Example: ``min-parameters = 11_000_000``, and a file that only holds the head.

    Remedy: find out which model was saved: ``ckpt summary``.
    """
    for asked, checkpoint in _asked(subject):
        if asked.min_parameters is None and asked.max_parameters is None:
            continue
        try:
            state_dict, module = pick(checkpoint, None)
        except CkptError as error:
            yield subject.finding(f"its parameters cannot be counted: {error.problem}")
            continue
        number = sum(tensor.numel for tensor in distinct(parameters_of(state_dict, module)))
        low, high = asked.min_parameters or 0, asked.max_parameters
        if number < low or (high is not None and number > high):
            wanted = (
                f"{low:,} to {high:,}"
                if low and high is not None
                else f"{low:,} or more"
                if low
                else f"at most {high:,}"
            )
            yield subject.finding(f"{count(number, 'parameter')}, not {wanted}", evidence={"parameters": number})


@rule("P207", "missing-key", "error", when=_is_asked)
def missing_key(subject: Subject) -> Iterator[Finding]:
    """No tensor of the file has a name that the policy asks for.

    Why: what loads the file takes the tensor by that name, or silently leaves a layer at its initial values.

    Example: ``keys = ["fc.weight"]``, and names that all begin with ``module.``.

    Remedy: rename them: ``ckpt convert --strip-prefix auto`` or ``--rename``.
    """
    for asked, _ in _asked(subject):
        for glob in asked.keys:
            if not any(fnmatchcase(tensor.name, glob) for tensor in subject.tensors):
                yield subject.finding(f"no tensor is called {glob}", evidence={"name": glob})


@rule("P208", "wrong-shape", "error", when=_is_asked)
def wrong_shape(subject: Subject) -> Iterator[Finding]:
    """A tensor does not have the sizes that the policy asks for, or is not there.

    Why: a head for another number of classes loads nowhere that expects this one.

    Example: ``shapes = { "fc.weight" = [10, -1] }``, and a head of 1,000 classes.

    Remedy: find out which model was saved: ``ckpt summary``.
    """
    for asked, _ in _asked(subject):
        missing = dict(asked.shapes)
        for tensor in subject.tensors:
            wanted = asked.shapes.get(tensor.name)
            if wanted is None:
                continue
            missing.pop(tensor.name, None)
            shape = tensor.shape
            if len(wanted) != len(shape) or any(a not in (-1, b) for a, b in zip(wanted, shape, strict=True)):
                yield subject.finding(
                    f"its shape is {list(shape)}, not {list(wanted)}",
                    tensor=tensor.name,
                    evidence={"shape": list(shape), "wanted": list(wanted)},
                )
        for name in missing:
            yield subject.finding(f"no tensor is called {name}", evidence={"name": name})


@rule("P209", "metadata-not-as-asked", "error", when=_is_asked)
def metadata_not_as_asked(subject: Subject) -> Iterator[Finding]:
    """The file lacks metadata that the policy asks for, or has another value.

    Why: provenance that is not in the file is lost as soon as the file is copied.

    Example: ``metadata = ["revision"]``, and a safetensors file without any.

    Remedy: write it: ``ckpt convert --metadata KEY=VALUE``.
    """
    for asked, checkpoint in _asked(subject):
        for key, wanted in asked.metadata.items():
            if key not in checkpoint.metadata:
                yield subject.finding(f"there is no metadata {key}", evidence={"name": key})
            elif not fnmatchcase(str(checkpoint.metadata[key]), wanted):
                found = shortened(str(checkpoint.metadata[key]))
                yield subject.finding(f"the metadata {key} is {found}, not {wanted}", evidence={"name": key})


@rule("P210", "not-frozen", "error", needs="bytes", when=_is_asked)
def not_frozen(subject: Subject) -> Iterator[Finding]:
    """Parameters that the policy wants frozen are trainable, were trained, or are not there, or it cannot be told.

    Why: a backbone that was trained by mistake costs time and often quality.

    Example: ``frozen = ["backbone.*"]``, and ``backbone.conv1.weight`` differs from the --base.

    Remedy: freeze them before training. Where it cannot be told, name the checkpoint that training began with (``base``
    in the policy, or --base).
    """
    for asked, checkpoint in _asked(subject):
        if not asked.frozen:
            continue
        try:
            judgements = subject_of(checkpoint, base=subject.base).trainability.parameters
        except CkptError as error:
            yield subject.finding(f"nobody can tell what is frozen: {error.problem}")
            continue
        for glob in asked.frozen:
            if not any(fnmatchcase(name, glob) for name in judgements):
                yield subject.finding(f"no parameter is called {glob}", evidence={"name": glob})
        alike: dict[tuple[str, str], list[str]] = {}
        for name, judgement in judgements.items():
            if judgement.verdict != "frozen" and _fits(name, asked.frozen):
                alike.setdefault((judgement.verdict, judgement.basis.reason), []).append(name)
        for (verdict, reason), names in alike.items():
            told = "trainable" if verdict == "trainable" else "frozen or trainable, nobody can tell"
            several = f" ({count(len(names), 'parameter')}: {listed(names, 3)})" if len(names) > 1 else ""
            yield subject.finding(
                f"it is {told}: {reason}{several}",
                tensor=names[0],
                evidence={"verdict": verdict, "parameters": names[:100]},
            )


@rule("P211", "license-not-allowed", "error", when=_is_asked)
def license_not_allowed(subject: Subject) -> Iterator[Finding]:
    """The file's metadata name a licence that the policy does not allow, or none.

    Why: weights come with terms, and those who use the file should find them in it.

    Example: ``licenses = ["apache-2.0", "mit"]``, and a GGUF file with ``general.license = "cc-by-nc-4.0"``.

    Remedy: use other weights, or write the licence into the file: ``ckpt convert --metadata license=…``.
    """
    for asked, checkpoint in _asked(subject):
        if not asked.licenses:
            continue
        found = [str(value) for key, value in checkpoint.metadata.items() if _names_license(key)]
        if not found:
            yield subject.finding("no licence in its metadata")
        for text in found:
            if not _fits(text.lower(), [glob.lower() for glob in asked.licenses]):
                yield subject.finding(f"its licence is {shortened(text)}", evidence={"license": shortened(text)})


def _names_license(key: str) -> bool:
    last = key.lower().replace("/", ".").rpartition(".")[2]
    return last in ("license", "licence", "license_name", "modelspec_license")


@rule("P212", "wrong-digest", "error", needs="bytes", when=_is_asked)
def wrong_digest(subject: Subject) -> Iterator[Finding]:
    """The digest of the weights, or of the whole file, is not the one that the policy gives.

    Why: these are not the weights that were reviewed.

    Example: ``digest = "…"`` as `ckpt digest` printed it, and a file that was trained on since.

    Remedy: fetch the file again, or review the new one and write its digest into the policy.
    """
    for asked, checkpoint in _asked(subject):
        if asked.digest:
            from ckpt_tools.analysis.digest import digest

            try:
                state_dict = weights(checkpoint, None)
            except CkptError as error:
                found = f"not to be had ({error.problem})"
            else:
                found = digest(state_dict.tensors).sha256
            if found != asked.digest:
                yield subject.finding(
                    f"the weights' digest is {found}, not {asked.digest}", evidence={"name": "digest", "found": found}
                )
        if asked.sha256:
            if subject.file is None:
                raise CkptError("a folder has no SHA-256; ask for the digest of its weights", path=subject.path)
            from hashlib import sha256

            hashed = sha256()
            for chunk in subject.file.chunks():
                hashed.update(chunk)
            if hashed.hexdigest() != asked.sha256:
                yield subject.finding(
                    f"the file's SHA-256 is {hashed.hexdigest()}, not {asked.sha256}",
                    evidence={"name": "sha256", "found": hashed.hexdigest()},
                )


RULES: tuple[Rule, ...] = (
    expired_waiver,
    global_added,
    global_removed,
    format_not_allowed,
    kind_not_allowed,
    global_not_allowed,
    dtype_not_allowed,
    too_large,
    parameter_count,
    missing_key,
    wrong_shape,
    metadata_not_as_asked,
    not_frozen,
    license_not_allowed,
    wrong_digest,
)
