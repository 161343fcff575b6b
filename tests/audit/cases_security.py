"""The security rules: what each finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

from ckpt_tools.audit.subject import Subject
from tests.audit.cases import FIXTURES, Case, Cases, Make, fixture, made
from tests.hostile.attacks import (
    ZEROS,
    Attack,
    attacks,
    call,
    checkpoint,
    exported,
    gguf,
    name,
    onnx,
    script,
    stream,
    tensors,
    zipped,
)
from tests.hostile.third_search import keras

ATTACKS = {attack.name: attack for attack in attacks()}
GOOD = made(checkpoint(tensors(), ZEROS))
OBJECT = made(stream({"epoch": 3}), "model.pkl")


def attacked(attack_name: str, says: str, member: str = "pickle", clean: Make = OBJECT) -> Case:
    """The attack of that name as a file."""
    attack = ATTACKS[attack_name]
    return Case(made(attack.data, f"model{attack.suffix}"), clean, says, member)


def _folder(attack: Attack) -> Make:
    def make(folder: Path) -> Subject:
        for file, data in attack.files:
            (folder / file).write_bytes(data)
        return Subject.open(str(folder))

    return make


def _model_folder(config: str) -> Make:
    """A sharded model with this ``config.json`` beside it."""

    def make(folder: Path) -> Subject:
        for source in (FIXTURES / "sharded/safetensors").iterdir():
            (folder / source.name).write_bytes(source.read_bytes())
        (folder / "config.json").write_text(config)
        return Subject.open(str(folder))

    return make


CASES: Cases = {
    "S101": attacked("os.system by REDUCE", "os.system runs code or programs"),
    "S102": attacked("builtins:getattr called", "builtins.getattr reaches any attribute or module by name"),
    "S103": attacked("pickle:Unpickler called", "pickle.Unpickler loads a further pickle or program"),
    "S104": attacked("builtins:open called", "builtins.open opens, writes or removes files"),
    "S105": attacked("socket:create_connection called", "socket.create_connection opens network connections"),
    "S106": attacked("sys:exit called", "sys.exit changes the running process"),
    "S107": attacked("textwrap:dedent called", "textwrap.dedent is not among the functions known to do nothing"),
    "S108": attacked("an extension code", "copyreg.extension 1 stands for whatever the loading process has registered"),
    "S109": attacked("partial that is called", "the result of functools.partial is called"),
    "S110": attacked("attributes of a class of torch", "torch.nn.modules.linear.Linear is changed itself"),
    "S111": attacked("somewhere:run called", "somewhere.run is called, and nothing is known of it"),
    "S112": Case(fixture("model/cnn.pt"), GOOD, "", "cnn/data.pkl"),
    "S113": Case(fixture("model/cnn.pt"), GOOD, "torch.nn.modules.", "cnn/data.pkl"),
    "S114": Case(
        made(ATTACKS["bytecode given to a call"].data, "model.pkl"),
        OBJECT,
        "it holds a function as bytecode (cloudpickle.cloudpickle._make_function)",
        "pickle",
    ),
    "S115": attacked(
        "broken by no STOP",
        "it cannot be evaluated to its end (the pickle breaks off); before that it refers to 1 name",
    ),
    "S116": attacked("os.system by a protocol that changes", "PROTO in the middle of the stream"),
    "S117": attacked(
        "a member that is not torch's",
        "a pickle of 28 bytes that is not part of the checkpoint; it refers to os.system",
        "archive/extra",
        GOOD,
    ),
    "S118": attacked("a pickle in a byte string", "a pickle that refers to os.system", "pickle: a byte string"),
    "S119": attacked("a program before the archive", "to others a zip archive with 'archive/data.pkl'", "", GOOD),
    "S120": attacked(
        "a script that writes a file",
        "the code uses torch.save",
        "m/code/__torch__.py",
        made(script("y = torch.sub(x, x)")),
    ),
    "S121": Case(
        made(script("y = ops.mylib.fused(x)")),
        made(script("y = ops.aten.sub(x, x)")),
        "the code uses operators of mylib",
        "m/code/__torch__.py",
    ),
    "S122": attacked(
        "an expression of an exported program",
        "a size is the expression \"__import__('os').system('true')\"",
        "p/models/model.json",
        made(
            exported(
                {"sizes": [{"as_expr": {"expr_str": "Add(Symbol('s77', positive=True, integer=True), Integer(1))"}}]}
            )
        ),
    ),
    "S123": attacked("a member above the folder", "'archive/../../x'", "archive/../../x", GOOD),
    "S124": attacked("a program among the storages", "a Linux program or library", "archive/data/9", GOOD),
    "S125": Case(
        made(checkpoint(tensors(), ZEROS, ("archive/code/net.py", b"import os\n"))),
        made(script("y = torch.sub(x, x)")),
        "Python source or bytecode",
        "archive/code/net.py",
    ),
    "S126": attacked(
        "a template that climbs",
        "tokenizer.chat_template refers to '__class__'",
        "",
        made(gguf("{% for message in messages %}{{ message['content'] }}{% endfor %}"), "model.gguf"),
    ),
    "S129": Case(
        _model_folder('{"auto_map": {"AutoModel": "modeling.Net"}}'),
        _model_folder('{"architectures": ["BertModel"], "auto_map": {}}'),
        "auto_map has AutoModel: modeling.Net imported",
        "config.json",
    ),
    "S130": Case(
        _model_folder('{"loss": {"_target_": "os.system"}}'),
        _model_folder(
            '{"optimizer": {"_target_": "torch.optim.AdamW"}, "data": {"_target_": "torchvision.datasets.MNIST"},'
            ' "order": {"_target_": "collections.OrderedDict"}, "target": "test.csv", "compile": "torch.compile"}'
        ),
        "_target_ is os.system: it runs code or programs",
        "config.json",
    ),
    "S128": Case(
        made(checkpoint(stream({"x": call(name("_codecs:encode"), "x", "latin1")}, protocol=2))),
        GOOD,
        "weights_only takes _codecs.encode since torch 2.5",
        "archive/data.pkl",
    ),
    "S127": attacked("a Lambda layer of Keras", "a layer of the class Lambda", "config.json", GOOD),
}

MORE: dict[str, tuple[Case, ...]] = {
    "S127": (
        attacked("a module named by Keras", "it refers to the module os", "config.json", GOOD),
        Case(
            made(keras({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}), "model.keras"),
            # a list is the words themselves, and functions of builtins are those of Keras
            made(
                keras(
                    {
                        "class_name": "StringLookup",
                        "config": {"vocabulary": ["a", "b"], "initializer": {"module": "keras.initializers"}},
                        "activation": {"module": "builtins", "class_name": "function", "config": "relu"},
                    }
                ),
                "model.keras",
            ),
            "a layer reads its vocabulary from '/etc/passwd'",
            "config.json",
        ),
    ),
    "S129": (
        # CVE-2025-66448, CVE-2026-5241
        Case(
            _model_folder('{"vision_config": {"auto_map": {"AutoModel": "nobody/x--net.Net"}}}'),
            _model_folder('{"trust_remote_code": false}'),
            "auto_map has AutoModel: nobody/x--net.Net imported",
            "config.json",
        ),
        Case(
            _model_folder('{"trust_remote_code": true}'),
            _model_folder("{}"),
            "it asks for remote code to be trusted",
            "config.json",
        ),
    ),
    "S130": (
        Case(
            made(checkpoint(stream({"hyper_parameters": {"_instantiator": "mypackage.run"}}, protocol=2))),
            made(
                checkpoint(
                    stream(
                        {
                            "hyper_parameters": {
                                "_instantiator": "lightning.pytorch.cli.instantiate_module",
                                "_class_path": "mypackage.Net",
                            }
                        },
                        protocol=2,
                    )
                )
            ),
            "_instantiator is mypackage.run: it is imported, and called with the class",
            "",
        ),
        Case(
            made(b"x: !!python/object/apply:os.system ['true']\n", "model.yaml"),
            made(b"x: !!python/object:argparse.Namespace {a: 1}\ny: !!python/tuple [1]\n", "model.yaml"),
            "python is os.system",
            "",
        ),
    ),
    "S126": (
        Case(
            made(gguf("{{ ()['_' * 2 ~ 'class' ~ '_' * 2] }}"), "model.gguf"),
            made(gguf("{{ m.name.replace('_', ' ') + '_' + x }}{% set ns = namespace(a=1) %}"), "model.gguf"),
            "tokenizer.chat_template refers to",
            "",
        ),
    ),
    "S119": (
        attacked("an archive before the archive", "the archive begins at byte", "", GOOD),
        attacked("a legacy file with an archive behind it", "to others a zip archive", "", GOOD),
    ),
    "S120": (
        *(
            Case(made(script(code)), GOOD, "the code uses torch.save", "m/code/__torch__.py")
            # all of these torch.jit.load takes, and writes the file when the model is called
            for code in (
                'torch . save(x, "/nonexistent/x")',
                'torch.\\\n      save(x, "/nonexistent/x")',
                '(torch. # why\n      save)(x, "/nonexistent/x")',
                "f = torch.save",
            )
        ),
        Case(made(script('ops.aten.save(x, "/nonexistent/x")')), GOOD, "ops.aten.save", "m/code/__torch__.py"),
        attacked("a script that reads a file", "the code uses torch.from_file", "m/code/__torch__.py", GOOD),
        attacked("a script that writes an image", "ops.image.write_file", "m/code/__torch__.py", GOOD),
        attacked("a script that calls another machine", "rpc_sync", "m/code/__torch__.py", GOOD),
        attacked("a script with a class of C++", "dist_c10d.TCPStore", "m/code/__torch__.py", GOOD),
        attacked("a script for the mobile interpreter", "the code uses aten::save", "m/bytecode.pkl", GOOD),
        Case(
            made(zipped([("inner.pt", ATTACKS["a script that writes a file"].data)]), "model.zip"),
            made(zipped([("inner.pt", script("pass"))]), "model.zip"),
            "the code uses torch.save",
            "m/code/__torch__.py",
        ),
    ),
    "S122": (
        attacked("a target of an exported program", "the graph calls torch.hub.load", "p/models/model.json", GOOD),
        attacked("an expression in escapes", "a size is the expression", "p/models/model.json", GOOD),
        Case(
            made(exported({"nodes": [{"target": "torch.ops.aten.from_file.default"}]})),
            made(
                exported(
                    {
                        "nodes": [
                            {"target": "torch.ops.aten.sub.Tensor"},
                            {"target": "torch.sym_int"},
                            {"target": "_operator.add"},
                        ]
                    }
                )
            ),
            "the graph calls torch.ops.aten.from_file.default",
            "p/models/model.json",
        ),
    ),
    "S123": (
        attacked("a member at the root", "'/etc/cron.d/x'", "/etc/cron.d/x", GOOD),
        attacked("a member with a drive", "'C:", "C:\\x", GOOD),
        attacked("a link in a zip archive", "the archive has a symbolic link", "archive/link", GOOD),
        attacked("a link in a tar archive", "the archive has a link to '/etc/passwd'", "storages2", GOOD),
        attacked("a tar member above the folder", "'../../x'", "../../x", GOOD),
        Case(made(onnx("../../../etc/passwd"), "model.onnx"), fixture("other/tiny.onnx"), "outside the model's folder"),
        Case(_folder(ATTACKS["a shard above the folder"]), fixture("sharded/safetensors"), "outside its folder"),
    ),
    "S124": (attacked("a library in a package", "a Linux program or library", "p/data/aotinductor/model/x.so", GOOD),),
    "S117": (
        attacked("a second pickle", "a pickle of 28 bytes that is not part of the checkpoint", "pickle 2"),
        attacked("a pickle after a legacy file", "it refers to os.system", "after the end", GOOD),
    ),
}
"""Further cases of some rules; the first of each is above."""
