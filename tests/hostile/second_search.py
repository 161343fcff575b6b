"""Our second search for ways past the audit: what acts when it is restored, what fills itself, odd containers."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib

from tests.hostile.assembler import (
    BENIGN,
    COMMAND,
    LEGACY,
    SYSTEM,
    ZEROS,
    Attack,
    Raw,
    call,
    checkpoint,
    exported,
    gguf,
    name,
    new,
    npy,
    old_tar,
    patched,
    push,
    short,
    stacked,
    stream,
    tarred,
    tensors,
    text,
    zipped,
)

EVIL = stream(SYSTEM)
NAMESPACE = "types:SimpleNamespace"
HELD = stacked("mypackage.tools:run")
MODULE = new("mypackage:Net", state={"training": True, "_parameters": {}, "_buffers": {}, "_modules": {}})
CALLBACK = new("torch._dynamo.convert_frame:CatchErrorsWrapper", state={})
CONTEXT = call("torch._dynamo.eval_frame:OptimizeContext", CALLBACK, stacked("contextlib:nullcontext"), True)
EXPRESSION = "__import__('os').system('true')"


def built(value: Raw, state: object) -> Raw:
    """BUILD behind *value*."""
    return Raw(value.code + push(state) + b"b")


def restored() -> list[Attack]:
    """Objects that no constructor makes, and that act all the same: by __new__, __setstate__ or __del__."""
    source = {"_istmpdest": True, "_destpath": "/nonexistent"}
    lock = new("filelock._api:FileLockContext", state={"lock_file": "/nonexistent", "lock_file_fd": -1})
    first = b"N0cos\nsystem\n(S'true'\ntR."  # begins with an opcode that no pickler begins with
    objects: dict[str, tuple[Raw, str]] = {
        "a class of SymPy evaluates text": (new("sympy.physics.quantum.hilbert:ComplexSpace", EXPRESSION), "S101"),
        "a function of SymPy evaluates text": (
            new("sympy.functions.elementary.exponential:exp", EXPRESSION),
            "S101",
        ),
        "a class of SymPy by copyreg": (
            call("copyreg:__newobj__", stacked("sympy.physics.quantum.hilbert:ComplexSpace"), EXPRESSION),
            "S101",
        ),
        "a class of SymPy that is called": (call("sympy.physics.quantum.hilbert:ComplexSpace", EXPRESSION), "S101"),
        "text deep in a formula of SymPy": (
            new("sympy.core.add:Add", new("sympy.core.mul:Mul", (("x", EXPRESSION),))),
            "S101",
        ),
        "text for SymPy that is computed": (
            new("sympy.functions.elementary.exponential:exp", call("builtins:str", EXPRESSION)),
            "S101",
        ),
        "a formula of torch's own": (new("torch.utils._sympy.functions:CeilDiv", EXPRESSION, "1"), "S107"),
        "a distribution of SciPy executes text": (
            new("scipy.stats._continuous_distns:norm_gen", state={"_parse_arg_template": "import os\n"}),
            "S101",
        ),
        "a distribution of SciPy executes more than it should": (
            new(
                "scipy.stats._continuous_distns:norm_gen",
                state={"_parse_arg_template": "def _parse_args(self, a=exit()):\n    return (), 0\n"},
            ),
            "S101",
        ),
        "numpy's DataSource removes a folder": (new("numpy.lib._datasource:DataSource", state=source), "S104"),
        "numpy's DataSource by copyreg": (
            built(
                call(
                    "copyreg:_reconstructor",
                    stacked("numpy.lib._datasource:Repository"),
                    stacked("builtins:object"),
                    None,
                ),
                source,
            ),
            "S104",
        ),
        "numpy's DataSource by OBJ": (
            Raw(b"(" + stacked("numpy.lib._datasource:DataSource").code + b"o" + push(source) + b"b"),
            "S104",
        ),
        "numpy's DataSource by NEWOBJ_EX": (
            Raw(stacked("numpy.lib._datasource:DataSource").code + b")}\x92" + push(source) + b"b"),
            "S104",
        ),
        "a lock removes its file": (new("filelock._soft:SoftFileLock", state={"_context": lock}), "S104"),
        "a callback of Transformers removes a folder": (
            new(
                "transformers.integrations.integration_utils:NeptuneCallback",
                state={"_volatile_checkpoints_dir": "/nonexistent"},
            ),
            "S104",
        ),
        "a wrapper of Gymnasium unpickles its state": (
            new("gymnasium.vector.utils.misc:CloudpickleWrapper", state=first),
            "S101",
        ),
        "a wrapper of Stable-Baselines3 unpickles its state": (
            new("stable_baselines3.common.vec_env.base_vec_env:CloudpickleWrapper", state=first),
            "S102",
        ),
        "a template of Jinja is compiled": (new("jinja2.environment:Template", "{{ 1 }}"), "S101"),
        "a file of fsspec is opened": (
            new("fsspec.implementations.local:LocalFileOpener", state={"path": "/etc/passwd", "mode": "rb", "loc": 0}),
            "S105",
        ),
        "a font of Pillow is opened": (
            new("PIL.ImageFont:FreeTypeFont", state=("//nowhere/x", 10, 0, "", 0)),
            "S104",
        ),
        "a reference to a storage frees memory": (
            new("torch.multiprocessing.reductions:StorageWeakRef", state={"cdata": 4096}),
            "S101",
        ),
        "a file of CUDA's is closed": (new("torch.cuda.gds:GdsFile", state={"handle": None, "fd": 0}), "S101"),
        "a library of inductor's is closed": (
            new("torch._inductor.codecache:DLLWrapper", state={"is_open": True, "DLL": None}),
            "S101",
        ),
        "a module of torch's that imports": (
            new("torch.onnx._internal._lazy_import:_LazyModule", state={"_name": "this", "_module": None}),
            "S101",
        ),
        "an object of torch that sets attributes elsewhere": (
            new(
                "torch._functorch.autograd_function:WrappedCtx",
                state=({"_pt_inner_ctx": stacked("mypackage:settings")}, {"debug": True}),
            ),
            "S101",
        ),
        "a script's object that calls what is set": (
            new(
                "torch.jit._script:RecursiveScriptClass",
                state=({"_props": {"x": new(NAMESPACE, state={"fset": HELD})}}, {"x": COMMAND}),
            ),
            "S101",
        ),
        "a class of torch of which nothing is known": (new("torch.nothing.known:Thing", state={}), "S107"),
        "an array that is mapped": (new("numpy:memmap", "/nonexistent", "uint8", "w+"), "S104"),
        "an array that is mapped, wrapped": (
            call("functools:partial", stacked("numpy:memmap"), "/nonexistent", "uint8", "w+"),
            "S104",
        ),
        "a model that is fetched": (call("ultralytics:YOLO", "https://127.0.0.1:1/x.pt"), "S103"),
        "a model of another name that is fetched": (
            call("ultralytics.models.rtdetr.model:RTDETR", "x.pt"),
            "S103",
        ),
        "a tokenizer of a file": (call("transformers.models.bert:BertTokenizer", "/etc/passwd"), "S103"),
        "an environment of a module": (call("stable_baselines3:PPO", "MlpPolicy", "evil:Env-v0"), "S103"),
        "joblib's wrapper of pickles": (
            call("joblib.externals.loky.cloudpickle_wrapper:_reconstruct_wrapper", first, True),
            "S103",
        ),
    }
    return [Attack(way, stream(value), code) for way, (value, code) in objects.items()]


def compiled() -> list[Attack]:
    """What stands beside the compiled models that are harmless."""
    module, context = "torch._dynamo.eval_frame:OptimizedModule", "torch._dynamo.eval_frame:OptimizeContext"
    null = stacked("contextlib:nullcontext")
    partial = call("functools:partial", HELD, COMMAND)
    objects: dict[str, Raw] = {
        "restored by its state": new(module, state={"dynamo_ctx": HELD, "_modules": {}, "_parameters": {}}),
        "given a function": call(module, MODULE, HELD),
        "given a function that is wrapped": call(module, MODULE, partial),
        "given a class for a module": call(module, stacked("mypackage:Net"), CONTEXT),
        "given an object that is no module": call(module, new(NAMESPACE, state={"x": 1}), CONTEXT),
        "given a module with __call__": call(
            module,
            new("mypackage:Net", state={"_parameters": {}, "_modules": {}, "__call__": stacked("mypackage:Net")}),
            CONTEXT,
        ),
        "changed afterwards": built(call(module, MODULE, CONTEXT), {"dynamo_ctx": HELD}),
        "in a context of its own making": call(module, MODULE, call(context, CALLBACK, HELD, True)),
        "in a context that is wrapped": call(module, MODULE, call(context, CALLBACK, partial, True)),
        "in a context with a callback of its own": call(module, MODULE, call(context, HELD, null, True)),
        "in a context with more attributes": call(module, MODULE, built(CONTEXT, {"_package": HELD})),
        "by a backend that is called": call("torch._dynamo.backends.debugging:eager", MODULE, []),
        "by a function of the same module": call("torch._dynamo.eval_frame:optimize", HELD),
        "by another function of the same module": call("torch._dynamo.convert_frame:convert_frame", HELD, None),
        "by a registered backend": call("torch._dynamo.backends.registry:lookup_backend", "inductor"),
        "with a file that is replayed": call("torch._dynamo.convert_frame:replay", "/nonexistent"),
        "with what has another context": call("contextlib:contextmanager", HELD),
        "with a stack of contexts": new("contextlib:ExitStack", state={"_exit_callbacks": [HELD]}),
    }
    return [Attack(f"a compiled model {way}", stream(value), "S101") for way, value in objects.items()]


def filled() -> list[Attack]:
    """Opcodes that call methods, which the attributes of an object stand for; wrappers that hand changes on."""
    held = {"append": HELD, "extend": HELD, "add": HELD}
    extra = new(
        "torch.nn.modules.container:Sequential",
        state={"_modules": {"0": new("mypackage:Net", state={"extra_repr": HELD, "_modules": {}})}},
    )
    wrapped = new("collections:UserDict", state={"data": stacked("mypackage:registry")})
    chained = new("collections:ChainMap", state={"maps": [stacked("mypackage:registry")]})
    alias = call("typing:_GenericAlias", stacked("mypackage:Net"), (stacked("builtins:int"),))
    memory = {"shape": (1,), "typestr": "|u1", "data": (4096, False), "version": 3}
    objects: dict[str, tuple[Raw, str]] = {
        "APPEND calls an attribute": (
            Raw(new(NAMESPACE, state={"append": HELD}).code + push(COMMAND) + b"a"),
            "S109",
        ),
        "APPENDS calls an attribute": (
            Raw(new(NAMESPACE, state={"extend": HELD}).code + b"(" + push(COMMAND) + b"e"),
            "S109",
        ),
        "ADDITEMS calls an attribute": (
            Raw(new(NAMESPACE, state={"add": HELD}).code + b"(" + push(COMMAND) + b"\x90"),
            "S109",
        ),
        "APPEND calls an attribute among the slots": (
            Raw(new("mypackage:Thing", state=(None, held)).code + push(COMMAND) + b"a"),
            "S109",
        ),
        "BUILD calls an attribute": (built(new(NAMESPACE, state={"__setstate__": HELD}), COMMAND), "S110"),
        "items set on what a UserDict wraps": (Raw(wrapped.code + push("x") + b"K\x01s"), "S110"),
        "items set on what a ChainMap wraps": (Raw(chained.code + b"(" + push("x") + b"K\x01u"), "S110"),
        "an alias hands attributes on": (built(alias, (None, {"forward": 1})), "S110"),
        "an alias of Python's hands attributes on": (
            built(call("types:GenericAlias", stacked("mypackage:Net"), ()), (None, {"forward": 1})),
            "S110",
        ),
        "a logger's adapter hands attributes on": (
            built(call("logging:LoggerAdapter", stacked("mypackage:Net")), ({}, {"manager": 1})),
            "S110",
        ),
        "an array at any address": (
            call("numpy:array", new(NAMESPACE, state={"__array_interface__": memory})),
            "S110",
        ),
        "a tensor at any address": (
            call("torch:tensor", new(NAMESPACE, state={"__cuda_array_interface__": memory})),
            "S110",
        ),
        "the text of a module calls an attribute": (call("builtins:repr", extra), "S107"),
        "str of a module calls an attribute": (call("builtins:str", extra), "S109"),
        "str of a list of modules": (call("builtins:str", [extra]), "S109"),
        "UserString of a module": (call("collections:UserString", extra), "S109"),
        "keys() of an object, called by UserDict": (
            call("collections:UserDict", new(NAMESPACE, state={"keys": HELD})),
            "S109",
        ),
        "print called": (call("builtins:print", "x"), "S107"),
        "isinstance called": (call("builtins:isinstance", 1, stacked("mypackage:Net")), "S107"),
        "max called": (call("builtins:max", [1]), "S107"),
        "a namespace made by _rebuild_from_type_v2": (
            call(
                "torch._tensor:_rebuild_from_type_v2",
                stacked(NAMESPACE),
                stacked("torch:Tensor"),
                ({"as_subclass": HELD},),
                {},
            ),
            "S109",
        ),
        "a method of a class by its name, called": (call("mypackage:Net.restore", COMMAND), "S102"),
        "a method of a class of torch by its name, called": (
            call("torch.nn.modules.module:Module.load_state_dict", MODULE, {}),
            "S102",
        ),
        "a module in a class": (stacked("mypackage:Net.subprocess"), "S102"),
        "a method of a class, called": (
            call(call("builtins:getattr", stacked("mypackage:Net"), "restore"), COMMAND),
            "S109",
        ),
        "a method of text, called": (call(call("builtins:getattr", stacked("builtins:str"), "format"), "x"), "S109"),
        "a method of a method": (
            call("builtins:getattr", call("builtins:getattr", stacked("mypackage:Net"), "os"), "path"),
            "S102",
        ),
        "a time zone that climbs": (
            call(call("builtins:getattr", stacked("zoneinfo:ZoneInfo"), "_unpickle"), "../../etc/passwd", True),
            "S109",
        ),
        "another method of a time zone": (call("builtins:getattr", stacked("zoneinfo:ZoneInfo"), "from_file"), "S102"),
        "reduce of nothing": (call("functools:reduce"), "S101"),
        "reduce of a function of the same name": (
            call("functools:reduce", stacked("mypackage:or_"), (stacked("mypackage:A"), stacked("mypackage:B"))),
            "S101",
        ),
        "reduce of another function": (call("functools:reduce", HELD, (1, 2)), "S101"),
        "reduce of what is no class": (call("functools:reduce", stacked("operator:or_"), (MODULE, MODULE)), "S101"),
        "a collate function, called": (call("torch.utils.data._utils.collate:default_collate", [1]), "S101"),
        "an image loader, called": (call("torchvision.datasets.folder:default_loader", "/nonexistent"), "S104"),
        "a helper of the datasets": (stacked("torchvision.datasets.utils:download_url"), "S104"),
        "a member of an enumeration with more": (
            call("torchvision.models.resnet:ResNet18_Weights.get_state_dict", True),
            "S102",
        ),
        "a function of torch by its C module": (
            call("functools:partial", stacked("torch:import_ir_module"), "/nonexistent"),
            "S103",
        ),
        "a name imported by torch": (call("torch._utils:_import_dotted_name", "os.system"), "S107"),
        "a function of numpy under another name": (call("numpy.core.multiarray:fromfile", "/nonexistent"), "S107"),
    }
    return [Attack(way, stream(value), code) for way, (value, code) in objects.items()]


def said_otherwise() -> list[Attack]:
    """Streams that say the same in ways that readers trip over."""
    os, system, arguments = short("os"), short("system"), push((COMMAND,))
    evil = {
        "a memo index as large as it gets": (
            b"\x80\x04" + os + b"r\xff\xff\xff\x7f0" + b"j\xff\xff\xff\x7f" + system + b"\x93" + arguments + b"R."
        ),
        "memo entries in text": b"(S'os'\np77\n0g77\nS'system'\n\x93(S'true'\ntR.",
        "MEMOIZE behind a gap": (
            b"\x80\x04" + short("x") + b"q\x05" + os + b"\x940h\x01" + system + b"\x93" + arguments + b"R."
        ),
        "a memo entry that is put twice": (
            b"\x80\x04" + short("json") + b"q\x000" + os + b"q\x000h\x00" + system + b"\x93" + arguments + b"R."
        ),
        "a string of Python 2 in escapes": b"S'\\x6f\\x73'\nS'\\163ystem'\n\x93(S'true'\ntR.",
        "names in text of eight-byte length": (
            b"\x80\x04\x8d"
            + struct.pack("<Q", 2)
            + b"os\x8d"
            + struct.pack("<Q", 6)
            + b"system\x93"
            + arguments
            + b"R."
        ),
        "a frame that is too short": b"\x80\x04\x95" + struct.pack("<Q", 3) + EVIL[2:],
        "frames in frames": (b"\x80\x04\x95" + struct.pack("<Q", 60) + b"\x95" + struct.pack("<Q", 40) + EVIL[2:]),
        "a frame in the middle": b"\x80\x04N0\x95" + struct.pack("<Q", len(EVIL) - 2) + EVIL[2:],
        "a set that is filled with a call": b"\x80\x04\x8f(" + SYSTEM.code + b"\x90.",
        "a frozen set of a call": b"\x80\x04(" + SYSTEM.code + b"\x91.",
        "the type of a storage": b"\x80\x02" + push(("storage", SYSTEM, "0", "cpu", 1)) + b"Q.",
        "keywords of NEWOBJ_EX": b"\x80\x04" + stacked("mypackage:Net").code + b")" + push({"x": SYSTEM}) + b"\x92.",
        "a state": stream(built(new("mypackage:Net"), SYSTEM)),
        "the key of an item": b"\x80\x04}" + SYSTEM.code + b"K\x01s.",
        "a tuple that is dropped": b"\x80\x04" + SYSTEM.code + b"\x850N.",
        "below a thousand marks": b"\x80\x04" + b"(" * 1000 + SYSTEM.code + b"1" * 1000 + b"N.",
        "behind a long list": b"\x80\x04](" + b"N" * 20_000 + b"e0" + SYSTEM.code + b".",
        "behind a long text": b"\x80\x04" + text("x" * 200_000) + b"0" + SYSTEM.code + b".",
        "behind many numbers": b"I1\n0" * 5000 + b"cos\nsystem\n(S'true'\ntR.",
        "without a protocol, as text": b"cos\nsystem\n(S'true'\ntR.",
        "an object of Python 2's classes": b"(cos\nsystem\nS'true'\no.",
        "behind bytes in a buffer": b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc0" + SYSTEM.code + b".",
        "an integer of 255 bytes before it": b"\x80\x02\x8a\xff" + bytes(255) + b"0" + SYSTEM.code + b".",
    }
    found = [Attack(f"os.system: {way}", data, "S101") for way, data in evil.items()]
    text_files = {
        "under the name of a text": ".txt",
        "under the name of a configuration": ".json",
        "under the name of a page": ".md",
        "under no name": "",
    }
    found += [
        Attack(f"a pickle {way}", b"cos\nsystem\n(S'true'\ntR.", "S101", suffix) for way, suffix in text_files.items()
    ]
    found += [
        Attack(
            f"a pickle in a folder {way}",
            b"",
            "S101",
            "",
            files=((f"readme{suffix}", b"cos\nsystem\n(S'true'\ntR."), ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")),
        )
        for way, suffix in text_files.items()
    ]
    return found


def end_record(archive: bytes, comment: bytes) -> bytes:
    """*archive* with a comment behind its end record."""
    at = archive.rindex(b"PK\x05\x06")
    return archive[: at + 20] + struct.pack("<H", len(comment)) + comment


def extra(archive: bytes, data: bytes) -> bytes:
    """*archive*, of one member, with *data* in the extra field of its local header."""
    field = struct.pack("<HH", 0x4650, len(data)) + data
    assert archive.startswith(b"PK\x03\x04")
    length = struct.unpack_from("<H", archive, 26)[0]
    at = archive.index(b"PK\x01\x02")
    moved = archive[:28] + struct.pack("<H", len(field)) + archive[30 : 30 + length] + field + archive[30 + length : at]
    rest = archive[at:]
    end = rest.rindex(b"PK\x05\x06")
    return moved + rest[: end + 16] + struct.pack("<L", len(moved)) + rest[end + 20 :]


def members(method: int) -> bytes:
    """A checkpoint with a pickle in a member that is compressed by *method*."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", tensors())
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/extra.pkl", EVIL, method)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def commented_member(comment: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, data in (("archive/data.pkl", tensors()), ZEROS, ("archive/version", b"3\n")):
            info = zipfile.ZipInfo(member)
            info.comment = comment
            archive.writestr(info, data)
    return buffer.getvalue()


def archives() -> list[Attack]:
    """Places in zip and tar archives, and in compressed files, where nobody looks."""
    good, evil = checkpoint(tensors(), ZEROS), checkpoint(EVIL, ZEROS)
    one = zipped([("x.npy", npy(BENIGN))])
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflated.compress(b"text") + deflated.flush() + EVIL
    hidden = zipped([("archive/data.pkl", tensors()), ("archive/data/0", bytes(16)), ("archive/a", packed)])
    for mark, method, size in ((b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)):
        at = hidden.rindex(mark)
        hidden = hidden[: at + method] + b"\x08\x00" + hidden[at + method + 2 :]
        hidden = hidden[: at + size] + struct.pack("<L", 4) + hidden[at + size + 4 :]
    pax = io.BytesIO()
    with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("weights")
        info.size, info.pax_headers = len(evil), {"path": "../../weights.pt"}
        archive.addfile(info, io.BytesIO(evil))
    nemo = tarred([("model_config.yaml", b"a: 1\n"), ("model_weights.ckpt", evil)])
    return [
        Attack("a pickle in the comment of an archive", end_record(good, EVIL), "S101", ".pt"),
        Attack("an archive in the comment of an archive", end_record(good, evil), "S101", ".pt"),
        Attack("bytes in the comment of an archive", end_record(good, bytes(range(256))), "I102", ".pt", answer=""),
        Attack("a pickle in the comment of a member", commented_member(EVIL), "S101", ".pt"),
        Attack(
            "a pickle in the extra field of a member",
            extra(one, b"\0" * 4 + EVIL + b"\0" * 400),
            "I102",
            ".npz",
            answer="",
        ),
        Attack("a pickle behind the archive", good + EVIL, "S101", ".pt"),
        Attack("bytes behind the archive", good + bytes(range(1, 200)), "I102", ".pt", answer=""),
        Attack("a pickle compressed with bzip2 in an archive", members(zipfile.ZIP_BZIP2), "I102", ".pt", answer=""),
        Attack("a pickle compressed with LZMA in an archive", members(zipfile.ZIP_LZMA), "I102", ".pt", answer=""),
        Attack("a pickle behind the deflated bytes of a member", hidden, "S101", ".pt"),
        Attack(
            "a NUL in the name of a member",
            zipped([("archive/data.pkl", BENIGN), ("archive/x.pkl", EVIL), ("archive/version", b"3\n")]).replace(
                b"archive/x.pkl", b"archive/x\0pkl"
            ),
            "S101",
            ".pt",
        ),
        Attack(
            "a backslash in the name of a member", checkpoint(tensors(), ZEROS, ("archive\\x.pkl", EVIL)), "S101", ".pt"
        ),
        Attack(
            "two slashes in the name of a member",
            checkpoint(tensors(), ZEROS, ("archive//data.pkl", EVIL)),
            "S101",
            ".pt",
        ),
        Attack("another root", checkpoint(tensors(), ZEROS, ("other/data.pkl", EVIL)), "S101", ".pt"),
        Attack("sizes that stand in a data descriptor", patched(evil, b"PK\x03\x04", 6, b"\x08\x00"), "S101", ".pt"),
        Attack(
            "a member longer than its local header says", patched(evil, b"PK\x03\x04", 22, b"\1\0\0\0"), "S101", ".pt"
        ),
        Attack(
            "a member shorter than the directory says",
            patched(evil, b"PK\x01\x02", 24, b"\1\0\0\0"),
            "I103",
            ".pt",
            answer="",
        ),
        Attack("an end record of several disks", patched(evil, b"PK\x05\x06", 4, b"\1\0\1\0"), "S101", ".pt"),
        Attack("a pickle of a model of NeMo", nemo, "S101", ".nemo"),
        Attack("the same, compressed", gzip.compress(nemo, mtime=0), "S101", ".nemo"),
        Attack(
            "a model archive of TorchServe",
            zipped([("MAR-INF/MANIFEST.json", b"{}"), ("handler.py", b"import os\n"), ("model.pt", evil)]),
            "S101",
            ".mar",
        ),
        Attack("a path in the headers of a tar archive", pax.getvalue(), "S123", ".tar"),
        Attack(
            "a tar archive behind the end of another",
            tarred([("a.txt", b"x")]) + tarred([("b.pt", evil)]),
            "S101",
            ".tar",
        ),
        Attack("a pickle behind the end of a tar archive", tarred([("a.txt", b"x")]) + EVIL, "S101", ".tar"),
        Attack("a pickle behind the end of a tar of torch", old_tar(stream({}, protocol=2)) + EVIL, "S101", ".pt"),
        Attack("an archive behind the end of a tar of torch", old_tar(stream({}, protocol=2)) + evil, "S101", ".pt"),
        Attack("a second member of gzip", gzip.compress(BENIGN, mtime=0) + gzip.compress(EVIL, mtime=0), "S101", ".gz"),
        Attack("a pickle behind a file of gzip", gzip.compress(BENIGN, mtime=0) + EVIL, "S101", ".gz"),
        Attack("a pickle behind a file of bzip2", bz2.compress(BENIGN) + EVIL, "S101", ".bz2"),
        Attack("a pickle behind a file of xz", lzma.compress(BENIGN) + EVIL, "S101", ".xz"),
        Attack("a pickle behind a zlib stream", zlib.compress(BENIGN) + EVIL, "S101", ".z"),
        Attack("compressed twice", gzip.compress(bz2.compress(evil), mtime=0), "S101", ".gz"),
        Attack("LZMA of old", lzma.compress(EVIL, format=lzma.FORMAT_ALONE), "S101", ".pkl"),
        Attack("LZ4", b"\x04\x22\x4d\x18" + EVIL, "I105", ".pkl", answer=""),
        Attack("Zstandard", b"\x28\xb5\x2f\xfd" + EVIL, "I105", ".pkl", answer=""),
        Attack("RAR", b"Rar!\x1a\x07\x01\x00" + EVIL, "I105", ".bin", answer=""),
        Attack("bytecode of Python", b"\xa7\x0d\x0d\x0a" + bytes(12) + b"\xe3" + bytes(30), "I101", ".bin", answer=""),
        Attack("a program of ExecuTorch", b"\x1c\0\0\0ET12" + bytes(64), "I101", ".pte", answer=""),
        Attack("a program for Linux", b"\x7fELF" + bytes(64), "I101", ".pt", answer=""),
    ]


def disguised(archive: bytes, at: int, kind: bytes = b"", size: int | None = None) -> bytes:
    """A tar archive whose header at *at* has another kind or size, and the checksum that fits."""
    header = bytearray(archive[at : at + 512])
    if kind:
        header[156:157] = kind
    if size is not None:
        header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return archive[:at] + bytes(header) + archive[at + 512 :]


def in_tar(kind: bytes) -> bytes:
    """A tar archive of a text, an entry of another *kind*, and a pickle."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in (("a.txt", b"text"), ("b", b""), ("c.pkl", EVIL)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            info.type = kind if member == "b" else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def reserved() -> list[Attack]:
    """What stands in kinds of entries that have no bytes; room that is asked for and not filled."""
    text_of = [("a.txt", b"text"), ("b", EVIL)]
    large = b"a" * (3 << 20) + b"\0" + EVIL + b"b" * 10_000
    structured = npy(EVIL).replace(b"'|O', ", b"[('a','|O')], ").replace(b" " * 8 + b"\n", b"\n")
    shared = b"\x80\x04N" + push({str(i): 0 for i in range(3000)}) + b"\x86q\x000"
    return [
        Attack(
            "slots that objects share",
            shared + b"](" + (stacked("mypackage:Thing").code + b")\x81h\x00b") * 3000 + b"e.",
            "S109",
        ),
        Attack(
            "a folder of tar that swallows a header",
            disguised(in_tar(tarfile.DIRTYPE), 1024, size=1024),
            "S101",
            ".tar",
        ),
        Attack(
            "a link of tar that swallows a header", disguised(in_tar(tarfile.LNKTYPE), 1024, size=1024), "S101", ".tar"
        ),
        Attack("a folder of tar with bytes", disguised(tarred(text_of), 1024, b"5"), "S101", ".tar"),
        Attack("an entry of tar of no known kind", disguised(tarred(text_of), 1024, b"Z"), "S101", ".tar"),
        Attack("a folder of zip with bytes", zipped([("a/", EVIL), ("b.txt", b"text")]), "S101", ".zip"),
        Attack(
            "a folder of a checkpoint with bytes", checkpoint(tensors(), ZEROS, ("archive/x/", EVIL)), "S101", ".pt"
        ),
        Attack("a tar archive that is a pickle", tarred([("cos\nsystem\n(S'true'\ntR.", b"x")]), "S101", ".tar"),
        Attack("objects in an array of records", structured, "S101", ".npy"),
        Attack("a pickle behind ten thousand", pickle.dumps(1, 2) * 30_000 + EVIL, "I102", answer=""),
        Attack(
            "a pickle in a long text", checkpoint(tensors(), ZEROS, ("archive/x.txt", large)), "I102", ".pt", answer=""
        ),
        Attack("room for a bytearray", stream({"x": call("builtins:bytearray", 1 << 30)}), "I104", answer=""),
        Attack(
            "room for a storage",
            b"\x80\x02" + name("torch:FloatStorage").code + b"\x8a\x06\0\0\0\0\0\x10\x85R.",
            "I104",
            answer="",
        ),
        Attack(
            "archives in archives",
            zipped([("a", zipped([("b", zipped([("c", zipped([("d.pkl", EVIL)]))]))]))]),
            "S101",
            ".zip",
        ),
    ]


def polyglots() -> list[Attack]:
    """Files of one format that another reader takes for a pickle; what stands behind the last tensor."""
    payload = b"0cos\nsystem\n(S'true'\ntR."
    entry = {"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}
    header = json.dumps(entry)[:-1].encode()
    header += b" " * (0x156 - len(header) - 2) + b"\n}"
    safetensors = struct.pack("<Q", len(header)) + header + payload
    assert safetensors.startswith(b"V\x01")
    array = npy(b"").replace(b"'|O'", b"'|u1'").replace(b"(1,), }  ", b"(1,), } ")
    return [
        Attack("safetensors that is a pickle", safetensors, "S101", ".safetensors"),
        Attack("a pickle behind an array", array + b"\1" + EVIL, "S101", ".npy"),
        Attack("a pickle behind the last tensor of GGUF", gguf("{{ x }}") + EVIL, "S101", ".gguf"),
        Attack(
            "bytes behind the last tensor of GGUF", gguf("{{ x }}") + bytes(range(1, 99)), "I102", ".gguf", answer=""
        ),
        Attack("an archive behind the last tensor of GGUF", gguf("{{ x }}") + checkpoint(EVIL), "S101", ".gguf"),
        Attack("an archive behind an array", array + b"\1" + checkpoint(EVIL), "S101", ".npy"),
        Attack(
            "a legacy file with a second behind it",
            LEGACY + pickle.dumps({}, 2) + pickle.dumps([], 2) + LEGACY + EVIL,
            "S101",
            ".pt",
        ),
    ]


def field(number: int, *parts: bytes | int) -> bytes:
    """A field of a protobuf message: a number, or a message of *parts*."""
    if isinstance(parts[0], int):
        return bytes([number << 3, parts[0]])
    body = b"".join(part for part in parts if isinstance(part, bytes))
    tag = number << 3 | 2
    return (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])) + bytes([len(body)]) + body


def node(operator: bytes, domain: bytes, *attributes: bytes) -> bytes:
    return field(1, field(2, b"y"), field(4, operator), field(7, domain), *attributes)


def graphs() -> list[Attack]:
    """ONNX models: what nodes refer to, wherever they stand."""
    entry = field(13, field(1, b"location"), field(2, b"../../../etc/passwd"))
    tensor = field(5, field(1, b"value"), field(5, field(1, 1), field(2, 1), entry, field(14, 1)))
    constant = node(b"Constant", b"", tensor)
    inner = field(5, field(1, b"then_branch"), field(6, constant))
    head, opset = field(1, 8), field(8, field(2, 17))
    function = field(25, field(1, b"F"), field(10, b"own"), b"\x3a" + constant[1:])
    return [
        Attack("a file in an attribute", head + field(7, constant, field(2, b"g")) + opset, "S123", ".onnx", answer=""),
        Attack(
            "a file in a branch",
            head + field(7, node(b"If", b"", inner), field(2, b"g")) + opset,
            "S123",
            ".onnx",
            answer="",
        ),
        Attack(
            "a file in a function",
            head + field(7, node(b"F", b"own"), field(2, b"g")) + opset + function,
            "S123",
            ".onnx",
            answer="",
        ),
    ]


def keras(config: object) -> bytes:
    return zipped(
        [
            ("metadata.json", b"{}"),
            ("config.json", json.dumps(config).encode()),
            ("model.weights.h5", b"\x89HDF\r\n\x1a\n"),
        ]
    )


def programs() -> list[Attack]:
    """What other programs than unpicklers run or open."""
    templates = {
        "by attr": "{{ ''|attr('x') }}",
        "in escapes": r"{{ ''['\x5f\x5fclass\x5f\x5f'] }}",
        "in other escapes": r"{{ ''['\u005f\u005fclass\u005f\u005f'] }}",
        "put together": "{{ ''['__cla' ~ 'ss__'] }}",
        "by a global of Jinja's": "{{ cycler.next }}",
    }
    found = [
        Attack(f"a template that climbs {way}", gguf(t), "S126", ".gguf", answer="") for way, t in templates.items()
    ]
    weights = ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    climbing = "{{ ''.__class__.__mro__ }}"
    beside = {
        "in the configuration of a tokenizer": (
            "tokenizer_config.json", json.dumps({"chat_template": climbing}).encode()
        ),
        "among the templates of a tokenizer": (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "default", "template": climbing}]}).encode(),
        ),
        "in a file of its own": ("chat_template.jinja", climbing.encode()),
        "in a file of JSON": ("chat_template.json", json.dumps({"chat_template": climbing}).encode()),
    }  # fmt: skip
    found += [
        Attack(f"a template {way}", b"", "S126", "", answer="", files=(("config.json", b"{}"), weights, file))
        for way, file in beside.items()
    ]
    serialized = base64.b64encode(EVIL).decode()
    agent = {
        "with line breaks": "\n".join(serialized[at : at + 8] for at in range(0, len(serialized), 8)),
        "with what decoders pass over": "*".join(serialized),
    }
    found += [
        Attack(
            f"a serialized value {way}",
            zipped(
                [
                    ("data", json.dumps({"policy": {":type:": "x", ":serialized:": value}}).encode()),
                    ("policy.pth", checkpoint(tensors(), ZEROS)),
                    ("_stable_baselines3_version", b"2.0"),
                ]
            ),
            "S101",
            ".zip",
        )
        for way, value in agent.items()
    ]
    layers: dict[str, tuple[object, tuple[str, ...]]] = {
        "a file that Keras fetches": (
            {"module": "keras.utils", "class_name": "function", "config": "get_file"},
            ("CVE-2025-8747",),
        ),
        "a function of Keras's own modules": (
            {"module": "keras.src.saving.saving_lib", "class_name": "function", "config": "load_model"},
            ("CVE-2025-8747",),
        ),
        "a file that a layer of Keras reads": (
            {"class_name": "StringLookup", "module": "keras.layers", "config": {"vocabulary": "/etc/passwd"}},
            ("CVE-2025-12058",),
        ),
        "a Lambda layer by its whole name": ({"class_name": "keras.layers.Lambda", "config": {}}, ("modelaudit#1020",)),
        "a module of torch in Keras": (
            {"class_name": "TorchModuleWrapper", "module": "keras.layers", "config": {"module": "gASV"}},
            ("CVE-2025-49655",),
        ),
    }
    found += [
        Attack(way, keras(layer), "S127", ".keras", answer="", cites=cites) for way, (layer, cites) in layers.items()
    ]
    found += [
        Attack(
            "the sample inputs of an exported program",
            zipped(
                [
                    ("p/archive_format", b"pt2"),
                    ("p/archive_version", b"0"),
                    ("p/models/model.json", b"{}"),
                    ("p/data/sample_inputs/model.pt", checkpoint(EVIL)),
                ]
            ),
            "S101",
            ".pt2",
        ),
        Attack(
            "a kernel in a package",
            zipped(
                [
                    ("p/archive_format", b"pt2"),
                    ("p/archive_version", b"0"),
                    ("p/data/aotinductor/model/x.cubin", bytes(100)),
                ]
            ),
            "S124",
            ".pt2",
            answer="",
        ),
        Attack(
            "a target of an exported program that is no operator",
            exported({"nodes": [{"target": "torch._inductor.codecache.compile_file"}]}),
            "S122",
            ".pt2",
            answer="",
        ),
        Attack(
            "a folder that DeepSpeed would leave",
            b"",
            "S123",
            "",
            answer="",
            files=(("latest", b"../../other"), ("zero_to_fp32.py", b"pass\n")),
        ),
        Attack(
            "an index with a drive",
            b"",
            "S123",
            "",
            answer="",
            files=(
                (
                    "model.safetensors.index.json",
                    json.dumps({"metadata": {}, "weight_map": {"w": "C:\\other\\model.safetensors"}}).encode(),
                ),
            ),
        ),
    ]
    return found


def advisories() -> list[Attack]:
    """Those published since the first search, called as their reports call them."""
    hidden = call(call("builtins:getattr", stacked("builtins:eval"), "__call__"), "1")
    cases: dict[str, tuple[Raw, str, tuple[str, ...]]] = {
        "eval by getattr": (hidden, "S102", ("GHSA-9m3x-qqw2-h32h", "CVE-2026-53874")),
        "an empty file by logging": (
            call("logging:FileHandler", "/nonexistent/x"),
            "S104",
            ("GHSA-m7j5-r2p5-c39r", "CVE-2026-56304"),
        ),
        "a file that is read and sent": (
            call(
                "urllib.request:urlopen",
                "http://127.0.0.1:1/x",
                call("io:FileIO", "/etc/hostname"),
            ),
            "S105",
            ("GHSA-9726-w42j-3qjr", "CVE-2026-53872"),
        ),
        "a name that pkgutil resolves, called": (
            call(call("pkgutil:resolve_name", "os:system"), COMMAND),
            "S102",
            ("GHSA-vvpj-8cmc-gx39", "CVE-2026-3490"),
        ),
        "doctest": (call("doctest:run_docstring_examples", "pass", {}), "S101", ("GHSA-pc6j-px3p-rrj4",)),
        "unittest": (call("unittest.mock:_importer", "os"), "S101", ("GHSA-pc6j-px3p-rrj4",)),
        "test": (call("test.support.script_helper:run_python_until_end", "-c"), "S101", ("GHSA-pc6j-px3p-rrj4",)),
        "an interpreter beside": (
            call("_xxsubinterpreters:run_string", 0, "pass"),
            "S101",
            ("GHSA-6ggj-6f2q-f7mx",),
        ),
        "a session of aiohttp": (call("aiohttp.client:ClientSession"), "S105", ()),
    }
    found = [
        Attack(f"published: {way}", stream(value), code, cites=cites) for way, (value, code, cites) in cases.items()
    ]
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    other = pickle.dumps(0x1950A86A20F9469CFC6D, 2) + LEGACY[len(magic) :]
    keys = pickle.dumps([], 2)
    return [
        *found,
        Attack("a legacy file with another magic number", other + stream(SYSTEM, {}, protocol=2) + keys, "S101", ".pt"),
    ]


def second_search() -> list[Attack]:
    """All of them."""
    return [
        *restored(),
        *compiled(),
        *filled(),
        *said_otherwise(),
        *archives(),
        *reserved(),
        *polyglots(),
        *programs(),
        *graphs(),
        *advisories(),
    ]
