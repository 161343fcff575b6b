"""S: what would happen when the file is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import chain

from ckpt_tools.audit import configured
from ckpt_tools.audit.coverage import AS_PICKLE, Opening
from ckpt_tools.audit.dangers import Danger, NameVerdict, PickleVerdict, classify
from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.gadgets import KNOWN_DANGERS, Category
from ckpt_tools.audit.inputs import CONFIGURATIONS, OTHER_CONFIGURATIONS, TEMPLATES
from ckpt_tools.audit.payload import digest, of_bytes
from ckpt_tools.audit.rule import Rule, rule
from ckpt_tools.audit.subject import Subject
from ckpt_tools.checkpoint import Checkpoint, Pickle
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded
from ckpt_tools.formats import tar
from ckpt_tools.formats.archive import Archive, Member
from ckpt_tools.formats.json_text import JSON_LIMIT
from ckpt_tools.pickles.weights_only import SINCE
from ckpt_tools.report import count, shortened
from ckpt_tools.sources import Source

# --- what the pickles do


def _needs_more(subject: Subject) -> bool:
    """Whether a pickle does more than to make tensors."""
    return any(verdict.answer != "tensors only" for verdict in subject.all_verdicts)


def _may_inject(subject: Subject) -> bool:
    return _needs_more(subject) or _has_program(subject)


def _dangers(subject: Subject, category: Category) -> Iterator[Finding]:
    for verdict in subject.all_verdicts:
        for danger in verdict.dangers:
            if danger.category == category:
                yield _found(subject, verdict, danger)


def _found(subject: Subject, verdict: PickleVerdict, danger: Danger) -> Finding:
    name = next((name for name in verdict.names if name.name == danger.subject), None)
    evidence: dict[str, object] = {"global": danger.subject, "payload": verdict.payload}
    if name is not None:
        evidence |= {"opcode": name.opcode, "called": name.called}
    return subject.finding(shortened(str(danger)), member=verdict.member, offset=danger.offset, evidence=evidence)


@rule("S101", "code-execution", "error", when=_needs_more)
def code_execution(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to something that runs code or programs.

    Why: unpickling calls what the file names, with the arguments that the file gives. The code runs before the
    loader returns, with the rights of the user who loads.

    Example: ``os.system``, ``subprocess.Popen``, ``builtins.eval``, ``pip.main``, ``timeit.timeit``,
    ``torch._inductor.codecache.compile_file``.

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "code")


@rule("S102", "reflection", "error", when=_needs_more)
def reflection(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to something that fetches attributes or modules by name.

    Why: with ``getattr`` or an import by name a file reaches everything that Python can do, while it names
    nothing that looks dangerous itself.

    Example: ``builtins.getattr``, ``operator.attrgetter``, ``importlib.import_module``, ``pkgutil.resolve_name``, a
    special attribute such as ``numpy.__builtins__``, a dotted name such as ``pathlib.os.system``.

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "reflection")


@rule("S103", "nested-loader", "error", when=_needs_more)
def nested_loader(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to something that loads a further pickle, model or program.

    Why: what that loads is not in this file, or is hidden in its bytes, and is unpickled without the restrictions
    that the outer file was loaded with.

    Example: ``pickle.loads``, ``torch.load``, ``torch.hub.load``, ``joblib.load``, ``numpy.load``,
    ``torch.storage._load_from_bytes`` over bytes that are no storage.

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "loader")


@rule("S104", "file-access", "error", when=_needs_more)
def file_access(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to something that opens, writes or removes files.

    Why: a file that is read can be sent away, and one that is written can be a program that runs at the next start.

    Example: ``builtins.open``, ``shutil.rmtree``, ``distutils.file_util.write_file``, ``logging.FileHandler``,
    ``numpy.memmap``.

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "files")


@rule("S105", "network-access", "error", when=_needs_more)
def network_access(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to something that opens network connections.

    Why: it sends away what is on the machine, tells that the file was loaded, or fetches more code.

    Example: ``socket.create_connection``, ``urllib.request.urlopen``, ``ssl.get_server_certificate``,
    ``requests.api.get``.

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "network")


@rule("S106", "process-state", "error", when=_needs_more)
def process_state(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to something that changes or ends the running process.

    Why: a signal handler, an exit hook or a changed search path makes the process run something later, and a scanner
    that is switched off misses what follows.

    Example: ``sys.path``, ``signal.signal``, ``atexit.register``, ``threading.Thread``, a module of a scanner.

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "process")


@rule("S107", "unlisted-library-call", "error", when=_needs_more)
def unlisted_library_call(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to a function of Python, torch or numpy that is not known to do nothing but make a value.

    Why: these libraries have hundreds of functions that lead to code, files or the network, and new ones with each
    release. A list of the dangerous ones is never complete, so what is not known to be harmless counts as dangerous.

    Example: ``torch.utils.something.run`` called by the pickle; ``textwrap.dedent``.

    Remedy: if you trust where the file comes from, say so in a waiver for this name; otherwise do not load it.
    """
    yield from _dangers(subject, "library")


@rule("S108", "extension-code", "error", when=_needs_more)
def extension_code(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to something by a number of copyreg's extension registry.

    Why: what the number stands for is settled in the process that loads, so that no reader of the file can tell.
    No known program writes checkpoints like this.

    Example: the opcodes EXT1, EXT2 and EXT4.

    Remedy: do not load the file.
    """
    yield from _dangers(subject, "extension")


@rule("S109", "computed-call", "error", when=_needs_more)
def computed_call(subject: Subject) -> Iterator[Finding]:
    """A pickle calls what it has itself computed, or has a call made that it does not name.

    Why: what is called is in no list of names. Pickles of real objects call classes and functions by name.

    Example: the result of ``functools.partial`` that is called; ``dict(x)`` of an object whose ``keys`` the file
    has set.

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "computed")


@rule("S110", "state-injection", "error", when=_may_inject)
def state_injection(subject: Subject) -> Iterator[Finding]:
    """A pickle changes a class, a function, a module or a tensor's memory instead of an object of its own.

    Why: the change holds for the whole process: what is called later, by anyone, is what the file has put there.

    Example: BUILD on ``numpy.size`` (modelscan issue 330); items set on ``torch.serialization._package_registry``;
    ``__class__`` among an object's slots; items set on a tensor (CVE-2026-24747); ``__class__`` among the external data
    of an ONNX model, whose keys onnx sets as attributes up to 1.20 (CVE-2026-34445).

    Remedy: do not load the file. Ask its author for the weights as safetensors.
    """
    yield from _dangers(subject, "injection")
    for place, checkpoint in subject.checkpoints:
        if checkpoint.format == "onnx" and isinstance(checkpoint.source, Source):
            from ckpt_tools.formats import onnx

            for mention in onnx.mentions(checkpoint.source):
                if mention.kind == "key" and mention.text.startswith("_"):
                    what = f"the external data of a tensor has its {mention.text!r:.80} set"
                    yield subject.finding(what, member=place, offset=mention.offset)


def _names(subject: Subject, fits: Callable[[NameVerdict], bool]) -> Iterator[tuple[PickleVerdict, NameVerdict]]:
    for verdict in subject.all_verdicts:
        for name in verdict.names:
            if fits(name):
                yield verdict, name


@rule("S111", "unknown-function", "error", when=_needs_more)
def unknown_function(subject: Subject) -> Iterator[Finding]:
    """A pickle calls a function of a package of which nothing is known, or keeps it with arguments.

    Why: a function may do anything with the arguments that the file gives. Objects are rarely restored by
    functions, so this is either a helper of the package that wrote the file, or an attack through a package that the
    attacker hopes to find installed.

    Example: ``mlflow.projects.backend.local._run_entry_point``, ``mycompany.checkpoints.restore``.

    Remedy: read the function. If it only makes an object, say so in a waiver for this name.
    """
    for verdict, name in _names(subject, lambda name: name.kind == "unknown function"):
        done = "called" if name.called else "kept with arguments, to be called later"
        yield subject.finding(
            f"{name.name} is {done}, and nothing is known of it",
            member=verdict.member,
            offset=name.offset,
            evidence={"global": name.name, "opcode": name.opcode, "payload": verdict.payload},
        )


@rule("S112", "unknown-class", "warning", when=_needs_more)
def unknown_class(subject: Subject) -> Iterator[Finding]:
    """A pickle refers to a class of a package of which nothing is known.

    Why: unpickling imports the package, and runs the class's own ``__new__``, ``__setstate__`` and ``__init__``
    where it has them. torch.load refuses the class unless it is allowed by name.

    Example: ``mymodel.net.Net`` in a file of ``torch.save(model)``.

    Remedy: save ``model.state_dict()`` instead of the object, or list the class among the policy's globals.
    """
    trusted = subject.options.policy.trusted(subject.path)
    for verdict, name in _names(subject, lambda name: name.kind == "unknown class"):
        if any(fnmatchcase(name.name, glob) for glob in trusted):
            continue
        what = f", {name.purpose}" if name.purpose else ""
        yield subject.finding(
            f"{name.name}{what}",
            member=verdict.member,
            offset=name.offset,
            evidence={"global": name.name, "opcode": name.opcode, "called": name.called},
        )


@rule("S113", "needs-classes", "note", when=_needs_more)
def needs_classes(subject: Subject) -> Iterator[Finding]:
    """A pickle holds more than tensors: classes of well-known libraries, which torch.load has to be told to allow.

    Why: torch.load refuses them since torch 2.6 (``weights_only=True``), and the file depends on these libraries
    and their versions.

    Example: a whole torchvision model, a Namespace of arguments, a numpy scalar.

    Remedy: save ``model.state_dict()``, plain numbers and text; or load with ``torch.serialization.safe_globals``.
    """
    script = subject.checkpoint is not None and subject.checkpoint.format == "torchscript"
    for verdict in subject.all_verdicts:
        known = [name for name in verdict.names if name.kind in ("class", "inert") and not name.allowed]
        # the lists of numbers in a script's tables of source lines are torch.jit's own business
        if known and not (script and all(name.name.startswith("torch.jit._pickle.build_") for name in known)):
            shown = ", ".join(f"{name.name} ({name.purpose})" if name.purpose else name.name for name in known[:4])
            rest = f" and {len(known) - 4:,} more" if len(known) > 4 else ""
            yield subject.finding(
                f"{shown}{rest}",
                member=verdict.member,
                offset=known[0].offset,
                evidence={"globals": [name.name for name in known]},
            )


@rule("S114", "embedded-bytecode", "warning", when=_needs_more)
def embedded_bytecode(subject: Subject) -> Iterator[Finding]:
    """A pickle holds functions as bytecode.

    Why: loading does not run them, but using what was loaded does. They cannot be reviewed as text, and fit only
    the Python version that wrote them.

    Example: the learning-rate schedule that Stable-Baselines3 keeps by cloudpickle.

    Remedy: keep functions in code, and only their names and numbers in the checkpoint.
    """
    for verdict in subject.all_verdicts:
        code = next((name for name in verdict.names if name.kind == "code"), None)
        if code is not None:
            yield subject.finding(
                f"it holds a function as bytecode ({code.name})",
                member=verdict.member,
                offset=code.offset,
                evidence={"global": code.name, "payload": verdict.payload},
            )


@rule("S115", "unevaluated-pickle", "error", when=_needs_more)
def unevaluated_pickle(subject: Subject) -> Iterator[Finding]:
    """A pickle cannot be evaluated to its end.

    Why: an unpickler acts on each opcode as it reads it, so what stands before the fault runs all the same, and
    what stands behind it nobody has seen. Such files are made to have scanners give up.

    Example: a stream that calls ``os.system`` and breaks off; a memo entry that was never stored; a name that is no
    text; a storage's bytes that torch.load is to read and that are none.

    Remedy: fetch the file again; if it is the same, do not load it.
    """
    problems = {pickle.member: pickle.problem for pickle in subject.pickles if pickle.problem}
    for verdict in subject.all_verdicts:
        if not verdict.complete:
            why = problems.get(verdict.member) or (subject.error.problem if subject.error is not None else "")
            seen = count(len(verdict.names), "name")
            yield subject.finding(
                f"it cannot be evaluated to its end{f' ({why})' if why else ''}; before that it refers to {seen}",
                member=verdict.member,
                evidence={"names": [name.name for name in verdict.names], "payload": verdict.payload},
            )


@rule("S116", "odd-stream", "warning")
def odd_stream(subject: Subject) -> Iterator[Finding]:
    """A pickle does what no pickler does, and what readers treat differently.

    Why: where two readers understand a stream differently, one of them can be shown something harmless.

    Example: values left on the stack at the end, PROTO in the middle, a string of Python 2 that is no text, an
    integer literal with a leading zero.

    Remedy: load it only if you know the program that wrote it, and save it anew.
    """
    for pickle in _streams(subject):
        seen: set[str] = set()
        shift = pickle.offset - pickle.evaluation.start
        for what, offset in pickle.evaluation.anomalies:
            if what not in seen and not what.startswith(_USUAL):
                seen.add(what)
                yield subject.finding(what, member=pickle.member, offset=offset + shift)


_USUAL = ("a mapping sets a key twice", "a Python 2 string that is not UTF-8", "an integer literal")


def _streams(subject: Subject) -> Iterator[Pickle]:
    return (pickle for pickle in subject.pickles if pickle.evaluation is not None)


@rule("S117", "second-pickle", "warning")
def second_pickle(subject: Subject) -> Iterator[Finding]:
    """The file holds a pickle that loading it the usual way does not read.

    Why: whoever reads on, or opens the member by its name, unpickles it. It is audited like the others.

    Example: a pickle after the end of the first; ``archive/extra.pkl`` beside ``archive/data.pkl``; a pickle among
    the storages, under the name of a storage or after its bytes.

    Remedy: take it out unless you know what it is for.
    """
    for pickle in _hidden(subject):
        names = ", ".join(str(use) for use in pickle.globals[:3]) or "no name"
        yield subject.finding(
            f"a pickle of {count(pickle.size, 'byte')} that is not part of the checkpoint; it refers to {names}",
            member=pickle.member,
            offset=pickle.offset,
            evidence={"bytes": pickle.size},
        )


def _hidden(subject: Subject) -> Iterator[Pickle]:
    if subject.checkpoint is None:
        return
    script = subject.checkpoint.format == "torchscript"
    if subject.checkpoint.format in ("pickle", "npy"):
        for pickle in subject.checkpoint.pickles:
            if re.fullmatch(r"(?:.*: )?pickle \d+", pickle.member):
                yield pickle
    yield from (p for p in subject.coverage.pickles if not (script and p.member.endswith(_OF_SCRIPTS)))


_OF_SCRIPTS = (".debug_pkl", "/traced_inputs.pkl", "/bytecode.pkl", "/mobile_debug_handles.pkl")
"""Members of a script that torch writes: where its code came from, what it was traced with, its mobile form."""


@rule("S118", "pickle-in-bytes", "warning")
def pickle_in_bytes(subject: Subject) -> Iterator[Finding]:
    r"""A byte string in a pickle is a pickle itself.

    Why: if something unpickles it, it acts. Most scanners do not look there.

    Example: ``{"data": b"\x80\x04…"}``; bytes that are handed to ``pickle.loads``.

    Remedy: find out what reads it, and store the values themselves.
    """
    for verdict in subject.all_verdicts:
        if ": a byte string" in verdict.member:
            names = ", ".join(name.name for name in verdict.names[:3])
            yield subject.finding(f"a pickle that refers to {names}", member=verdict.member)


@rule("S119", "polyglot", "error")
def polyglot(subject: Subject) -> Iterator[Finding]:
    """The file is of two formats at once.

    Why: a scanner reads the one, a loader the other.

    Example: a zip archive with another file, or another archive, before its first member; a legacy checkpoint with a
    zip archive at its end; a tar archive that is a pickle.

    Remedy: do not load the file; ask its author what it is.
    """
    source = subject.file
    if source is None:
        return
    head = source.peek(0, 512)
    archive = subject.archive
    if archive is not None and archive.members:
        first = archive.placed[0][0].header_offset
        if not head.startswith(b"PK"):
            own = subject.checkpoint.title if subject.checkpoint is not None else "something else"
            yield subject.finding(
                f"{own} to some, and to others a zip archive with {archive.members[0].name!r:.80}",
                offset=first,
                evidence={"payload": digest(of_bytes(source, first))},
            )
        elif first > 0:
            what = f"the archive begins at byte {first:,}; what stands before it begins like another"
            yield subject.finding(what, offset=0, evidence={"payload": digest(of_bytes(source, first))})
    if subject.checkpoint is not None:
        for anomaly in subject.checkpoint.anomalies:
            if "the same bytes are a legacy file" in anomaly.what:
                yield subject.finding(anomaly.what)
        if any(pickle.member.endswith(AS_PICKLE) for pickle in subject.coverage.pickles):
            yield subject.finding(f"{subject.checkpoint.title} to some, and to others a pickle", offset=0)


# --- programs in other formats


def _has_program(subject: Subject) -> bool:
    return any(checkpoint.format in _PROGRAM_FORMATS for _, checkpoint in subject.checkpoints)


_PROGRAM_FORMATS = frozenset({"torchscript", "onnx", "exported_program"})
_GAP = r"(?:\s|\\|#[^\n]*\n)*"  # between two words of TorchScript may stand white space and comments
_DOT = rf"{_GAP}\.{_GAP}"
# patterns stay text until there is code to look at: compiling them takes longer than reading most files
_OPERATOR = (
    rf"\btorch{_DOT}(?:save|from_file)\b|\bops{_DOT}aten{_DOT}(?:save|from_file)\b|\brpc_(?:sync|async|remote)\b"
    rf"|\bops{_DOT}image{_DOT}(?:read_file|write_file)\b|\bops{_DOT}(?:video_reader|torchaudio|debugprims){_DOT}\w+"
    rf"|__torch__{_DOT}torch{_DOT}classes{_DOT}"
    r"(?!(?:quantized|sparse|xnnpack|mkldnn|vulkan|metal|rnn|onednn)\b)[\w.]+"
)
_BYTECODE = rb"aten::(?:save|from_file)|prim::rpc_\w+|image::(?:read|write)_file|debugprims::\w+"
_CUSTOM = rf"\bops{_DOT}(?!(?:aten|prim|prims|quantized|torchvision|prepacked|sparse|mkldnn)\b)(\w+){_DOT}"
CODE_LIMIT = 1 << 25
"""The most bytes of TorchScript that are read, all members together."""


def _code(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """The members of a TorchScript archive that are code, with their content."""
    if checkpoint.format != "torchscript" or not isinstance(checkpoint.source, Source):
        return
    archive = Archive.of(checkpoint.source)
    left = CODE_LIMIT
    for member in archive.members:
        # torch finds members whatever the case of their names
        path = member.name.lower().removeprefix(archive.root.lower())
        if (path.startswith("code/") and path.endswith(".py")) or path in ("bytecode.pkl", "mobile_debug_handles.pkl"):
            left -= member.size
            if left < 0:
                raise CkptError(f"its code takes more than {CODE_LIMIT:,} bytes", member=member.name)
            yield member.name, archive.open(member).read(0, member.size)


@rule("S120", "torchscript-operator", "error", when=_has_program)
def torchscript_operator(subject: Subject) -> Iterator[Finding]:
    """TorchScript code calls an operator that reads or writes files, or calls other machines.

    Why: TorchScript runs when the model is called, some of it when it is loaded, and its operators reach the file
    system: ``aten::save`` writes a file of any name. It needs no pickle for that.

    Example: ``torch.save(x, "…")``, ``torch.from_file("/etc/passwd", …)``, ``ops.image.write_file(…)``,
    ``torch.rpc_sync(…)``, classes of ``torch.classes`` other than packed weights.

    Remedy: do not load the model; take its state_dict (``ckpt convert``) into a class of your own.
    """
    for _, checkpoint in subject.checkpoints:
        for member, code in _code(checkpoint):
            if member.lower().endswith(".py"):
                text = code.decode("utf-8", "replace")
                found = {_plain(m[0]): m.start() for m in reversed([*re.finditer(_OPERATOR, text)])}
            else:
                found = {m[0].decode(): m.start() for m in reversed([*re.finditer(_BYTECODE, code)])}
            payload = digest([code]) if found else ""
            for operator, offset in sorted(found.items(), key=lambda item: item[1]):
                evidence = {"name": operator, "payload": payload}
                yield subject.finding(f"the code uses {operator}", member=member, offset=offset, evidence=evidence)


def _plain(operator: str) -> str:
    """The words of *operator* with nothing between them but dots."""
    return re.sub(r"#[^\n]*\n|\s|\\", "", operator)


@rule("S121", "custom-operator", "warning", when=_has_program)
def custom_operator(subject: Subject) -> Iterator[Finding]:
    """TorchScript code or an ONNX graph calls an operator that is not torch's or ONNX's own.

    Why: what it does is in a library that must be loaded beforehand, and cannot be seen from the file.

    Example: ``ops.mylib.fused_attention(…)``; ``PyOp`` of ``ai.onnx.contrib``, which calls a function of Python;
    ``EPContext`` of ``com.microsoft``, which holds or names what another compiler made of the graph.

    Remedy: make sure of the library that the operator comes from.
    """
    for _, checkpoint in subject.checkpoints:
        for member, code in _code(checkpoint):
            if member.lower().endswith(".py"):
                for namespace in sorted(set(re.findall(_CUSTOM, code.decode("utf-8", "replace")))):
                    yield subject.finding(
                        f"the code uses operators of {namespace}", member=member, evidence={"name": namespace}
                    )
    for place, checkpoint in subject.checkpoints:
        if checkpoint.format == "onnx" and isinstance(checkpoint.source, Source):
            from ckpt_tools.formats import onnx

            own = onnx.functions(checkpoint.source)
            for mention in onnx.mentions(checkpoint.source):
                name = mention.text
                known = name.startswith(_OF_ONNX) and name not in _OPAQUE
                if mention.kind == "operator" and not known and name not in own:
                    yield subject.finding(
                        f"the graph uses the operator {name:.200}",
                        member=place,
                        offset=mention.offset,
                        evidence={"name": name},
                    )


_OPAQUE = ("com.microsoft::EPContext", "com.microsoft::PythonOp", "com.microsoft::PythonOpGrad")
"""What another compiler made of a graph, or a function of Python's by its name."""
_OF_ONNX = ("ai.onnx::", "ai.onnx.ml::", "ai.onnx.training::", "ai.onnx.preview.training::", "com.microsoft::")


_SYMBOL = r"Symbol\('\w+'"
_UNLIKE_SYMPY = r"__|['\"\\\[\]{};@]|[A-Za-z_)]\s*\.\s*[A-Za-z_]|\b(?:lambda|import|for|if)\b|\b[a-z_]\w*\s*\("
_TORCH_OPERATORS = ("torch.ops.aten.", "torch.ops.prim.", "torch.ops.prims.", "torch.ops.higher_order.")
_WRITES = ("torch.ops.aten.from_file", "torch.ops.aten.save", "torch.ops.image.", "torch.ops.debugprims.")


@rule("S122", "exported-program-code", "error", when=_has_program)
def exported_program_code(subject: Subject) -> Iterator[Finding]:
    """An exported program has an expression or a target that is no part of a graph of tensors.

    Why: torch.export.load has sympy evaluate the expressions for sizes, which is Python's ``eval``, and looks up
    the targets of calls by attribute, from torch on. What stands for a defaultdict or a member of an enumeration
    among the inputs has its module imported.

    Example: ``"expr_str": "__import__('os').system('…')"``; ``"target": "torch.hub.load"``;
    ``"default_factory_module": "os"``.

    Remedy: do not load the program.
    """
    for _, checkpoint in subject.checkpoints:
        if checkpoint.format != "exported_program" or not isinstance(checkpoint.source, Source):
            continue
        archive = Archive.of(checkpoint.source)
        for member in archive.members:
            if not member.name.lower().endswith(".json") or member.size > JSON_LIMIT:
                continue
            targets: set[str] = set()
            for key, value in _strings(archive, member):
                if key == "expr_str" and re.search(_UNLIKE_SYMPY, re.sub(_SYMBOL, "Symbol(", value)):
                    what = f"a size is the expression {value!r:.120}"
                    yield subject.finding(what, member=member.name, evidence={"payload": digest([_bytes(value)])})
                elif key in ("target", "as_operator") and value not in targets and _is_bad_target(value):
                    targets.add(value)
                    yield subject.finding(f"the graph calls {value}", member=member.name, evidence={"name": value})
                elif re.search(_IMPORTING, value):
                    for named in _imported(value):
                        what = f"the structure of its inputs or outputs has {named:.200} imported"
                        evidence = {"name": named, "payload": digest([_bytes(value)])}
                        yield subject.finding(what, member=member.name, evidence=evidence)


_IMPORTING = r"default_factory_module|__enum__|\\u00|\\x"
_MAX_TEXTS = 4
"""How deep JSON may lie in the texts of JSON: a treespec in a model, its contexts, and what stands in these."""


def _imported(text: str, depth: int = 0) -> Iterator[str]:
    """What does harm of that which ``torch.utils._pytree`` imports for a treespec."""
    import json

    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return
    for part in _dicts_in(content):
        module, name = part.get("default_factory_module"), part.get("default_factory_name")
        if "__enum__" in part and isinstance(part.get("fqn"), str):
            module, _, name = str(part["fqn"]).partition(":")
        if isinstance(module, str) and isinstance(name, str) and classify(module, name, False, made=True)[1]:
            yield f"{module}.{name}"
    if depth < _MAX_TEXTS:
        for _, inner in _texts_in(content):
            if re.search(_IMPORTING, inner):
                yield from _imported(inner, depth + 1)


def _strings(archive: Archive, member: Member) -> Iterator[tuple[str, str]]:
    """Every text in a JSON member under its key, whatever escapes either is written with."""
    yield from _texts_in(_json(archive, member))


def _json(archive: Archive, member: Member) -> object:
    """What is in a JSON member. Raises `CorruptFile` where that cannot be read."""
    import json  # few files have any

    try:
        return json.loads(archive.open(member).read(0, member.size))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"it is no JSON that can be read: {error!s:.80}", member=member.name) from None


def _texts_in(content: object) -> Iterator[tuple[str, str]]:
    """Every text in what was read of JSON, under its key."""
    pending: list[tuple[str, object]] = [("", content)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            pending += reversed(value.items())
        elif isinstance(value, list):
            pending += ((key, item) for item in reversed(value))


def _dicts_in(content: object) -> Iterator[dict[object, object]]:
    """Every object in what was read of JSON."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += reversed(value.values())
        elif isinstance(value, list):
            pending += reversed(value)


def _is_bad_target(target: str) -> bool:
    if target.startswith(_WRITES):
        return True
    if target.startswith(_TORCH_OPERATORS) or not target.startswith("torch.") or target.startswith("torch.ops."):
        return False
    module, _, name = target.rpartition(".")
    return not name.startswith(("sym_", "_sym_")) and classify(module, name, True)[1] is not None


@rule("S123", "climbing-path", "error")
def climbing_path(subject: Subject) -> Iterator[Finding]:
    """A name in the file leads out of the folder that it belongs in.

    Why: who unpacks the archive, or reads the files that it names, writes or reads elsewhere: a configuration, a
    key, a program.

    Example: a member ``../../.bashrc``; a link in a tar archive; ``/etc/passwd`` as the external data of an ONNX
    model; a shard index that names ``../other/model.safetensors``; a chat template that is called ``../../x``, which
    is the file that Transformers saves it in (CVE-2026-9856); external data that is a link to elsewhere
    (CVE-2026-34447).

    Remedy: do not unpack or load the file.
    """
    for place, key, text in _templates(subject) if subject.companions is not None else ():
        called = text if key == "name" else key
        if _climbs(called):
            yield subject.finding(f"a chat template is called {called!r:.200}", member=place)
    error = subject.error
    if error is not None and ("outside its folder" in error.problem or "outside the model's" in error.problem):
        yield subject.finding(error.problem, member=error.member or "")
    for place, checkpoint in subject.checkpoints:
        for anomaly in checkpoint.anomalies:
            if "outside the model's folder" in anomaly.what:
                yield subject.finding(anomaly.what, member=place, evidence={"where": anomaly.where})
        if checkpoint.format == "onnx" and isinstance(checkpoint.source, Source):
            from ckpt_tools.formats import onnx

            told = {anomaly.what for anomaly in checkpoint.anomalies}
            for mention in onnx.mentions(checkpoint.source):
                outside = mention.kind == "file" and _climbs(mention.text)
                if outside and not any(repr(mention.text)[:80] in what for what in told):
                    yield subject.finding(
                        f"a tensor among the attributes lies outside the model's folder: {mention.text!r:.80}",
                        member=place,
                        offset=mention.offset,
                    )
    yield from _links(subject)
    source = subject.file
    if source is None:
        return
    archive = subject.archive
    if archive is not None:
        if any(mark in archive.listing for mark in _CLIMBING):
            for name in (member.name for member in archive.members):
                if _climbs(name):
                    yield subject.finding(f"the archive has a member {name!r:.200}", member=name)
        for member in archive.members:
            if member.attributes and _is_link(member):
                yield subject.finding("the archive has a symbolic link", member=member.name)
    elif tar.is_header(source.peek(0, tar.BLOCK)):
        for entry in tar.entries(source):
            if _climbs(entry.name):
                yield subject.finding(f"the archive has a member {entry.name!r:.200}", member=entry.name)
            header = source.peek(entry.offset - tar.BLOCK, tar.BLOCK)
            if header[156:157] in (b"1", b"2"):
                target = header[157:257].partition(b"\0")[0].decode("utf-8", "replace")
                evidence = {"payload": digest([header[157:257]])}
                yield subject.finding(
                    f"the archive has a link to {target!r:.200}", member=entry.name, evidence=evidence
                )


def _links(subject: Subject) -> Iterator[Finding]:
    """Files of tensors that are links out of the model's folder, but for those into the cache of a hub."""
    if subject.checkpoint is None or subject.is_remote:
        return
    names: set[str] = set()
    if isinstance(subject.source, Opening):
        names = {source.name for source in subject.source.opened.values()}
    if any(checkpoint.format == "onnx" for _, checkpoint in subject.checkpoints):  # its external data
        names |= {storage.source.name for storage in subject.coverage.storages}
    for name in sorted(names - {subject.path}):
        if os.path.islink(name):
            target, folder = os.path.realpath(name), os.path.realpath(os.path.dirname(name))
            if not target.startswith(os.path.join(folder, "")) and os.path.basename(os.path.dirname(target)) != "blobs":
                yield subject.finding(f"a file of tensors is a link to {target!r:.200}", member=os.path.basename(name))


_CLIMBING = ("..", "\n/", "\\", ":")  # one of which stands in every list of names with one that climbs


def _climbs(name: str) -> bool:
    drive = name[1:2] == ":" and name[0].isascii() and name[0].isalpha()
    return name.startswith(("/", "\\")) or drive or ".." in name.replace("\\", "/").split("/")


def _is_link(member: Member) -> bool:
    """Whether a member is a symbolic link, by the mode that Unix programs keep."""
    return (member.attributes >> 16) & 0xF000 == 0xA000  # S_IFLNK


_PROGRAMS = (
    (b"\x7fELF", "a Linux program or library"),
    (b"MZ", "a Windows program or library"),
    (b"\xcf\xfa\xed\xfe", "a macOS program or library"),
    (b"\xca\xfe\xba\xbe", "a macOS program or library"),
    (b"#!", "a script"),
)


_MAGICS = tuple(magic for magic, _ in _PROGRAMS)


def _has_texts(subject: Subject) -> bool:
    """Whether there is text that programs read: in the metadata, or beside the model."""
    return subject.companions is not None or any(checkpoint.metadata for _, checkpoint in subject.checkpoints)


def _may_name_code(subject: Subject) -> bool:
    held = any(configured.may_name(checkpoint) for _, checkpoint in subject.checkpoints)
    return held or _has_texts(subject) or bool(subject.named_code)


_PROGRAM_ENDINGS = frozenset(
    {
        *(".so", ".dll", ".dylib", ".exe", ".pyd", ".sh", ".bat", ".cmd", ".ps1", ".cubin", ".ptx", ".fatbin"),
        *(".hsaco", ".spv", ".o", ".c", ".cc", ".cpp", ".cxx", ".cu", ".hip"),
    }
)
_PROGRAM_NAMES = rf"(?:{'|'.join(map(re.escape, _PROGRAM_ENDINGS))}|\.so(?:\.\d+)+|_(?:compile|linker)_flags\.json)$"


@rule("S124", "native-code", "error")
def native_code(subject: Subject) -> Iterator[Finding]:
    """The archive holds a program or a compiled library.

    Why: torch loads the libraries of packages that AOTInductor made, and machine code does what it likes from the
    moment it is loaded. Where there is none, torch compiles the source in the package, by a command that stands in the
    package, too. It cannot be audited here.

    Example: ``data/aotinductor/model/….so`` in a ``.pt2`` package; ``….cpp`` with ``…_compile_flags.json``.

    Remedy: load the package only from who built it; better, compile the exported program yourself.
    """
    archive = subject.archive
    if archive is None:
        return
    listing = archive.listing.lower()
    # what the pattern fits, at less cost
    named = not _PROGRAM_ENDINGS.isdisjoint(archive.endings) or ".so." in listing or "_flags.json" in listing
    tensors = set(archive.members).difference(subject.other_members) if named else ()
    for member in archive.members if named else subject.other_members:
        by_name = named and re.search(_PROGRAM_NAMES, member.name.lower()) is not None
        what = "a program or library, or what one is made of, by its name" if by_name else ""
        if member.size > 64 and member not in tensors:
            try:
                head = archive.open(member).peek(0, 4)
            except CkptError:
                head = b""
            if head.startswith(_MAGICS):
                what = next(kind for magic, kind in _PROGRAMS if head.startswith(magic))
        if what:
            evidence = {"bytes": member.size, "payload": _content(archive, member)}
            yield subject.finding(what, member=member.name, evidence=evidence)


@rule("S125", "python-in-archive", "warning")
def python_in_archive(subject: Subject) -> Iterator[Finding]:
    """The archive holds Python source.

    Why: torch.package and torch.hub import such files when the model is loaded. Being text, it is not judged here.

    Example: ``model/code/net.py`` in an archive of torch.package.

    Remedy: read it before you load the file.
    """
    archive = subject.archive
    if archive is None or archive.endings.isdisjoint(_PYTHON):
        return
    script = subject.checkpoint is not None and subject.checkpoint.format == "torchscript"
    for member in archive.members:
        inner = member.name.lower().removeprefix(archive.root.lower())
        if member.name.lower().endswith(_PYTHON) and not (script and inner.startswith("code/")):
            if member.name.lower().endswith(".pth") and not _is_path_file(archive, member.name):
                continue
            evidence = {"bytes": member.size, "payload": _content(archive, member)}
            yield subject.finding("Python source or bytecode", member=member.name, evidence=evidence)


_PYTHON = (".py", ".pyc", ".pth")


def _content(archive: Archive, member: Member) -> str:
    """The digest of a member, "" where it cannot be read: a rule says so."""
    try:
        return digest(archive.open(member).chunks())
    except CkptError:
        return ""


def _is_path_file(archive: Archive, name: str) -> bool:
    """Whether a member is a file of paths, whose lines that begin with ``import`` Python runs at its start."""
    member = archive.find(name)
    try:
        return member is not None and re.search(rb"^import[ \t]", archive.open(member).peek(0, 4096), re.M) is not None
    except CkptError:
        return False


_TEMPLATE = (
    r"__\w+__|['\"]__|(?i:\\x5f|\\u005f|\\137|%c)"
    r"|\bcycler\b|\blipsum\b|\bself\._|\.mro\b|\|\s*attr\b|\bos\b\s*\."
    # underscores that are put together with something, or taken from how a function or the template is shown
    r"|['\"]_+['\"]\s*(?:\*|[~+,]\s*['\"]_)|\d\s*\*\s*['\"]_"
    r"|['\"]_?(?:class|mro|subclasses|globals|builtins|getattribute)_?['\"]\s*[~+]"
    r"|[~+]\s*['\"]_?(?:class|mro|subclasses|globals|builtins|getattribute)_?['\"]"
    r"|\b(?:raise_exception|strftime_now|namespace|joiner|range|self)\s*\|"
)


@rule("S126", "template-injection", "error", when=_has_texts)
def template_injection(subject: Subject) -> Iterator[Finding]:
    """A chat template reaches for Python's internals.

    Why: such templates are run by Jinja; outside of its sandbox, ``__class__`` and ``__globals__`` lead to
    ``os.system`` (CVE-2024-34359).

    Example: ``{{ ''.__class__.__mro__[1].__subclasses__() }}`` as ``tokenizer.chat_template`` of a GGUF file, or as
    ``chat_template`` in the ``tokenizer_config.json`` beside the weights.

    Remedy: do not use the template.
    """
    own = (
        (place, key, value)
        for place, checkpoint in subject.checkpoints
        for key, value in checkpoint.metadata.items()
        if isinstance(value, str)
    )
    for place, key, value in chain(own, _templates(subject)):
        match = re.search(_TEMPLATE, value) if "{{" in value or "{%" in value else None
        if match is not None:
            evidence = {"name": key, "text": value[:200], "payload": digest([_bytes(value)])}
            yield subject.finding(f"{key} refers to {match[0]!r}", member=place, evidence=evidence)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _texts(subject: Subject, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Those of the files *names* that lie with a model, where Transformers reads them, with what is in them."""
    folder = subject.companions
    for name in names if folder is not None else ():
        assert folder is not None
        try:
            file = folder.open(name)
        except CkptError:  # most models have few of them
            continue
        if file.size > JSON_LIMIT:
            raise LimitExceeded(f"a text of {file.size:,} bytes, of which nothing was looked at", member=name)
        yield name, configured.decoded(file.read(0, file.size))


def _templates(subject: Subject) -> Iterator[tuple[str, str, str]]:
    """The texts beside a model that may be templates: the file, the key and the text of each."""
    for name, content in _texts(subject, TEMPLATES):
        import json  # few files have any

        try:
            whole = content if name.endswith(".jinja") else json.loads(content)
        except (ValueError, RecursionError):
            continue
        yield from ((name, key or name, text) for key, text in _texts_in(whole))


@rule("S127", "code-in-model", "error")
def code_in_model(subject: Subject) -> Iterator[Finding]:
    """A Keras model has a layer that is code, or that opens files.

    Why: a Lambda layer holds the bytecode of a function, or names one of any module, and Keras makes it when it
    loads the model (CVE-2024-3660, CVE-2025-1550, CVE-2025-8747); a TFSMLayer loads another model, which TensorFlow
    runs (CVE-2026-1462). A lookup layer whose vocabulary is a path reads that file, or fetches it (CVE-2025-12058).

    Example: ``"class_name": "Lambda"`` in the ``config.json`` of a ``.keras`` archive, or of the folder that it was
    unpacked to; ``"module": "os"``; ``"vocabulary": "/etc/passwd"``.

    Remedy: load it with ``safe_mode=True`` of a current Keras, or not at all.
    """
    import json

    for place, content in _keras_configurations(subject):
        for part in _dicts_in(content):
            for what, name in _keras_code(part):
                evidence = {"name": name, "payload": digest([json.dumps(part, sort_keys=True).encode()])}
                yield subject.finding(what, member=place, evidence=evidence)


def _keras_configurations(subject: Subject) -> Iterator[tuple[str, object]]:
    """What describes the layers of a Keras model, in an archive or in the folder of its weights."""
    import json

    source = subject.file
    archive = subject.archive if source is not None and source.peek(0, 4) == b"PK\x03\x04" else None
    member = archive.find("config.json") if archive is not None else None
    if archive is not None and member is not None and member.size <= JSON_LIMIT:
        # Keras reads this file alone before it makes the layers, so metadata.json may be missing
        names = archive.listing.lower()
        if any(f"\n{own}" in names for own in _OF_KERAS) or subject.path.lower().endswith(".keras"):
            yield member.name, _json(archive, member)
    for name, content in _texts(subject, ("config.json",)):
        try:
            text = json.loads(content)
        except (ValueError, RecursionError):
            continue
        if isinstance(text, dict) and isinstance(text.get("class_name"), str):
            yield name, text


def _keras_code(part: dict[object, object]) -> Iterator[tuple[str, str]]:
    """What of one object of a Keras configuration runs code or opens files, in words, and its name."""
    for key in ("class_name", "registered_name"):
        value = part.get(key)
        if isinstance(value, str) and value.rpartition(".")[2].rpartition(">")[2] in _CODE_LAYERS:
            yield f"a layer of the class {value:.200}", value
    module, cls, config = part.get("module"), part.get("class_name"), part.get("config")
    if module == "builtins":
        # older releases look a name up among Python's own, current ones among those of Keras
        own = next((name for name in (cls, config) if isinstance(name, str) and _is_dangerous_builtin(name)), "")
        if own:
            yield f"it refers to Python's {own}", own
    elif isinstance(module, str) and module.partition(".")[0] not in _KERAS and classify(module, "Unknown", True)[1]:
        yield f"it refers to the module {module:.200}", module
    for key in ("config", "registered_name", "function", "function_name"):
        value = part.get(key)
        if isinstance(value, str) and value in _LOADERS:
            yield f"it refers to the function {value}", value
    vocabulary = part.get("vocabulary")
    if isinstance(vocabulary, str):  # a list is the words themselves
        yield f"a layer reads its vocabulary from {vocabulary!r:.200}", vocabulary


def _is_dangerous_builtin(name: str) -> bool:
    return f"builtins.{name}" in KNOWN_DANGERS or name == "__import__"


_OF_KERAS = ("metadata.json\n", "model.weights.")
_CODE_LAYERS = ("Lambda", "TorchModuleWrapper", "TFSMLayer", "__lambda__")
_LOADERS = (
    *("get_file", "load_model", "load_weights", "load_img", "save_model", "save_weights", "load_from_saved_model"),
    *("deserialize_keras_object", "enable_unsafe_deserialization", "extract_archive"),
)
_KERAS = ("builtins", "keras", "tensorflow", "tf_keras", "keras_nlp", "keras_hub", "keras_cv")


@rule("S128", "recent-global", "note")
def recent_global(subject: Subject) -> Iterator[Finding]:
    """A pickle of tensors refers to a name that torch.load with weights_only takes only since some release.

    Why: an older torch refuses the file, and its users are then told to load it without the protection.

    Example: ``_codecs.encode``, by which protocol 2 keeps byte strings, since torch 2.5; ``builtins.set`` since 2.6.

    Remedy: keep bytes, sets and counters out of the checkpoint, or state the torch version that it needs.
    """
    for verdict, name in _names(subject, lambda name: name.allowed and name.name in SINCE):
        if verdict.answer == "tensors only":
            yield subject.finding(
                f"weights_only takes {name.name} since torch {SINCE[name.name]}",
                member=verdict.member,
                offset=name.offset,
                evidence={"global": name.name, "since": SINCE[name.name]},
            )


@rule("S129", "remote-code", "warning", when=_has_texts)
def remote_code(subject: Subject) -> Iterator[Finding]:
    """A model's folder names Python files that its loader is to import.

    Why: Transformers imports what ``auto_map`` names, from the folder or from another repository, if it is told to
    trust remote code, and some releases of it and of vLLM without (CVE-2025-66448, CVE-2026-5241). The weights may be
    safetensors, and the model runs code all the same.

    Example: ``"auto_map": {"AutoModel": "modeling.Net"}`` in ``config.json``, for the model or a part of it;
    ``"trust_remote_code": true`` there.

    Remedy: load it without ``trust_remote_code``, or read the files that it names, at that revision.
    """
    import json

    for name, content in _texts(subject, CONFIGURATIONS):
        try:
            text = json.loads(content)
        except (ValueError, RecursionError):
            continue
        for part in _dicts_in(text):
            wanted = part.get("auto_map")
            if isinstance(wanted, dict) and wanted:
                named = ", ".join(shortened(f"{key}: {value}", 60) for key, value in list(wanted.items())[:3])
                evidence = {"name": name, "payload": digest([json.dumps(wanted, sort_keys=True).encode()])}
                yield subject.finding(f"auto_map has {named} imported", member=name, evidence=evidence)
            if part.get("trust_remote_code") is True:
                what = "it asks for remote code to be trusted"
                yield subject.finding(what, member=name, evidence={"name": name})


@rule("S130", "named-code", "error", when=_may_name_code)
def named_code(subject: Subject) -> Iterator[Finding]:
    """A configuration names something to call that runs code, or fetches it.

    Why: Hydra calls whatever stands under ``_target_`` (CVE-2025-23304, CVE-2026-22584), Lightning imports and calls
    the ``_instantiator`` among the hyperparameters of a checkpoint, which weights_only takes (CVE-2026-58659),
    Transformers fetches and runs the attention that ``_attn_implementation_internal`` names (CVE-2026-4372).

    Example: ``_target_: os.system`` in the ``model_config.yaml`` of a ``.nemo`` archive, in the metadata of a
    safetensors file, or in the ``config.json`` beside the weights; ``!!python/object/apply:os.system``.

    Remedy: do not load the model with the program that reads this.
    """
    from ckpt_tools.analysis.leaves import stream_of  # few files have any

    found = chain(
        (("", named) for named in subject.named_code),
        ((place, named) for place, text in _configurations(subject) for named in configured.named_code(text)),
        (
            (place, named)
            for place, checkpoint in subject.checkpoints
            if configured.may_name(checkpoint)
            for named in configured.named_in(checkpoint.values, stream_of(checkpoint))
        ),
    )
    for place, named in dict.fromkeys(found):
        message = f"{named.key} is {named.name:.200}: {named.what}"
        yield subject.finding(message, member=place, evidence={"name": named.name, "payload": named.payload})


def _configurations(subject: Subject) -> Iterator[tuple[str, str]]:
    """The texts by which programs configure a model: those beside it, and those among its metadata."""
    yield from _texts(subject, (*CONFIGURATIONS, *OTHER_CONFIGURATIONS))
    for place, checkpoint in subject.checkpoints:
        yield from ((place, value) for value in checkpoint.metadata.values() if isinstance(value, str))


RULES: tuple[Rule, ...] = (
    code_execution,
    reflection,
    nested_loader,
    file_access,
    network_access,
    process_state,
    unlisted_library_call,
    extension_code,
    computed_call,
    state_injection,
    unknown_function,
    unknown_class,
    needs_classes,
    embedded_bytecode,
    unevaluated_pickle,
    odd_stream,
    second_pickle,
    pickle_in_bytes,
    polyglot,
    torchscript_operator,
    custom_operator,
    exported_program_code,
    climbing_path,
    native_code,
    python_in_archive,
    template_injection,
    code_in_model,
    recent_global,
    remote_code,
    named_code,
)
