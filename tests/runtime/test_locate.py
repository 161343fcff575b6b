"""What a user calls a model is found and built; what goes wrong is said in a sentence."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_tools import CkptError, open_checkpoint
from ckpt_tools.errors import MissingDependency
from ckpt_tools.sources import open_source

torch = pytest.importorskip("torch")
nn = torch.nn
locate = pytest.importorskip("ckpt_tools.runtime.locate").locate
parse_arguments = pytest.importorskip("ckpt_tools.runtime.locate").parse_arguments

NETS = '''
"""Models of a user."""
import functools
import torch
from torch import nn

print("imported")

class Net(nn.Module):
    def __init__(self, classes, width=4, *, bias=True):
        super().__init__()
        print("built")
        self.body = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, classes, bias=bias)
        self.register_buffer("scale", torch.full((2,), 3.0), persistent=False)

class Outer:
    class Inner(Net):
        pass

def small(**kwargs):
    return Net(2, **kwargs)

def no_model():
    return {"not": "a model"}

def raises(classes):
    raise ValueError("no more\\n than ten classes")

def leaves():
    raise SystemExit(3)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Parameter(torch.zeros(3, 4))
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(4, 3)
        self.third = nn.Embedding(3, 4)
        self.first.weight = shared
        self.second.weight = shared
        self.third.weight = self.second.weight

class Reads(nn.Module):
    """Reads its parameters while it is built."""
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.largest = self.linear.weight.max().item()

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(3)

def late():
    import beside
    return beside.make()

ready = nn.Linear(1, 1)
number = 3
partial = functools.partial(Net, 5)
'''
BESIDE = "from torch import nn\ndef make(): return nn.Linear(7, 7)\n"


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A folder with a package and files of models, which is the current one; imports in it are forgotten."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "nets.py").write_text(NETS)
    (tmp_path / "pack" / "needs.py").write_text("import no_such_thing\n")
    (tmp_path / "pack" / "script.py").write_text("import sys\nsys.exit('usage: script')\n")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "nets_file.py").write_text(NETS)
    (tmp_path / "files" / "beside.py").write_text(BESIDE)
    (tmp_path / "files" / "wrong.py").write_text("def x(:\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def classes_of(model):
    return model.head.out_features


def test_a_class_of_a_package_in_the_current_folder(nets, capsys):
    before = list(sys.path)
    model = locate("pack.nets:Net", [3], {"bias": False})
    assert (type(model).__name__, classes_of(model), model.head.bias) == ("Net", 3, None)
    assert sys.path == before
    assert capsys.readouterr() == ("", "imported\nbuilt\n")


def test_what_may_be_named(nets):
    assert classes_of(locate("pack.nets:Outer.Inner", [4])) == 4
    assert classes_of(locate("pack.nets:small", [], {"width": 2})) == 2
    assert classes_of(locate("pack.nets:partial")) == 5
    assert locate("pack.nets:ready").in_features == 1
    assert classes_of(locate("files/nets_file.py:Net", [6])) == 6
    assert classes_of(locate(f"{nets}/files/nets_file.py:small")) == 2


def test_a_file_imports_what_lies_beside_it_even_late(nets):
    with pytest.raises(CkptError, match="No module named 'beside'"):
        locate("pack.nets:late")
    before = list(sys.path)
    assert locate("files/nets_file.py:late").in_features == 7
    assert sys.path == before


def test_a_file_whose_name_is_taken_is_another_module(nets):
    (nets / "json.py").write_text(NETS)
    assert classes_of(locate("json.py:Net", [8])) == 8
    import json

    assert json.loads("1") == 1


def test_parameters_are_empty_and_buffers_real(nets):
    model = locate("pack.nets:Net", [3])
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert all(p.requires_grad for p in model.parameters())
    assert model.scale.tolist() == [3.0, 3.0]
    assert model.norm.running_var.tolist() == [1.0] * 4
    assert isinstance(locate("pack.nets:Lazy").linear.weight, nn.UninitializedParameter)


def test_shared_parameters_stay_shared(nets):
    model = locate("pack.nets:Tied")
    assert model.first.weight is model.second.weight is model.third.weight
    assert model.first.weight.is_meta
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 4), (3,), (3,)]


def test_what_reads_its_parameters_gets_real_ones(nets):
    model = locate("pack.nets:Reads")
    assert model.largest == model.linear.weight.max().item()
    assert locate("pack.nets:Net", [3], empty=False).body.weight.device.type == "cpu"
    # and nothing is left behind that would empty the next model
    assert nn.Linear(1, 1).weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("spec", "args", "kwargs", "message"),
    [
        ("Net", [], {}, "'Net' names no model. It may be package.module:Class, path/to/file.py:Class, "
         "torchvision:NAME, timm:NAME or pickle"),
        ("pack.nets:", [], {}, "'pack.nets:' names no model"),
        ("nothing.here:Net", [], {}, "there is no module 'nothing'. Modules are looked for in this environment"),
        ("pack.nothing:Net", [], {}, "there is no module 'pack.nothing'. "),
        ("pack.needs:Net", [], {}, "importing pack.needs failed: ModuleNotFoundError: No module named "
         "'no_such_thing' ({folder}/pack/needs.py, line 1)"),
        ("pack.script:Net", [], {}, "importing pack.script failed: SystemExit: usage: script "
         "({folder}/pack/script.py, line 2)"),
        ("files/none.py:Net", [], {}, "files/none.py: no such file"),
        ("files/wrong.py:Net", [], {}, "importing files/wrong.py failed: SyntaxError: "),
        ("pack.nets:Nat", [], {}, "pack.nets has no 'Nat'. Did you mean Net"),
        ("pack.nets:zzzzzz", [], {}, "pack.nets has no 'zzzzzz'"),
        ("pack.nets:number", [], {}, "pack.nets:number is of type int, neither a class nor a function"),
        ("pack.nets:Net", [], {"bias": False}, "pack.nets:Net needs arguments: classes. Give them with --kwargs "
         "classes=VALUE"),
        ("pack.nets:Net", [1, 2, 3], {}, "pack.nets:Net cannot be called so: too many positional arguments. "
         "It takes (classes, width=4, *, bias=True)"),
        ("pack.nets:Net", [1], {"heads": 2}, "pack.nets:Net cannot be called so: got an unexpected keyword argument "
         "'heads'. It takes (classes, width=4, *, bias=True)"),
        ("pack.nets:small", [], {"heads": 2}, "pack.nets:small raised TypeError: Net.__init__() got an unexpected "
         "keyword argument 'heads' ({folder}/pack/nets.py, line 23)"),
        ("pack.nets:raises", [3], {}, "pack.nets:raises raised ValueError: no more than ten classes "
         "({folder}/pack/nets.py, line 29)"),
        ("pack.nets:leaves", [], {}, "pack.nets:leaves raised SystemExit: 3 ({folder}/pack/nets.py, line 32)"),
        ("pack.nets:no_model", [], {}, "pack.nets:no_model returned a dict, not an nn.Module"),
    ],
)  # fmt: skip
def test_what_goes_wrong(nets, spec, args, kwargs, message):
    with pytest.raises(CkptError) as caught:
        locate(spec, args, kwargs)
    expected = message.replace("{folder}", str(nets))
    assert str(caught.value).startswith(expected), str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_are_json_or_text():
    assert parse_arguments(None, []) == ([], {})
    assert parse_arguments('[2, "relu", [1]]', ["a=2", "b=relu", "c=[1, 2]", "d=null", "e=None", "f=x=y", "g="]) == (
        [2, "relu", [1]],
        {"a": 2, "b": "relu", "c": [1, 2], "d": None, "e": None, "f": "x=y", "g": ""},
    )
    assert parse_arguments(None, ["t=true", "u=True", "v=False", "w=1e-3"])[1] == {
        "t": True, "u": True, "v": False, "w": 0.001,
    }  # fmt: skip
    for args, kwargs, message in [
        ("2", [], "the arguments are no JSON list: 2. "),
        ("[2", [], "the arguments are no JSON: "),
        (None, ["classes"], "'classes' is not key=value"),
        (None, ["a b=1"], "'a b=1' is not key=value"),
    ]:
        with pytest.raises(CkptError) as caught:
            parse_arguments(args, kwargs)
        assert str(caught.value).startswith(message)


# --- torchvision and timm


def test_torchvision_by_name():
    pytest.importorskip("torchvision")
    model = locate("torchvision:resnet18", [], {"num_classes": 2})
    assert (type(model).__name__, model.fc.out_features) == ("ResNet", 2)
    with pytest.raises(CkptError, match=r"torchvision has no model 'resnt18'. Did you mean resnet18"):
        locate("torchvision:resnt18")


def test_torchvision_backbones_come_without_weights():
    """Their builders download a backbone unless told not to; connections fail here, so this would raise."""
    pytest.importorskip("torchvision")
    assert type(locate("torchvision:lraspp_mobilenet_v3_large")).__name__ == "LRASPP"
    assert type(locate("torchvision:ssdlite320_mobilenet_v3_large")).__name__ == "SSD"


LIGHT = """
import sys
from ckpt_tools.runtime.verify import checks
from ckpt_tools.verification.job import Job

found = list(checks(Job(sys.argv[1], "torchvision:resnet18", inputs=["3,32,32"])))
assert [c.verdict for c in found] == [*["passed"] * 3, "warning", *["passed"] * 3, "skipped"], found
print([name for name in ("torch._dynamo", "torch._dynamo.utils", "sympy") if name in sys.modules])
from torchvision.ops import roi_align
print(sys.modules[roi_align.__module__].is_compile_supported("meta"), hasattr(sys.modules["torch._dynamo"], "optimize"))
"""


def alone(code, *arguments, cwd=None):
    """What *code* prints in a Python of its own."""
    path = os.pathsep.join([str(cwd or ""), str(Path(__file__).resolve().parents[2])])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True)


def test_the_compiler_of_torch_is_not_imported_for_a_model_of_torchvision(tmp_path):
    models = pytest.importorskip("torchvision").models
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet.pt")
    # but comes where torchvision calls it
    assert alone(LIGHT, tmp_path / "resnet.pt").stdout == "[]\nFalse True\n"


def test_a_torchvision_that_takes_more_of_the_compiler_gets_it(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(
        "import torch._dynamo.utils\nfrom torch import nn\ncounted = torch._dynamo.utils.counters\n"
        "def list_models(): return ['one']\n"
        "def get_model_builder(name): return lambda: nn.Linear(2, 3)\n"
    )
    code = "from ckpt_tools.runtime.locate import locate; print(locate('torchvision:one').out_features)"
    assert alone(code, cwd=tmp_path).stdout == "3\n"


def test_timm_by_name():
    pytest.importorskip("timm")
    model = locate("timm:resnet18", [], {"num_classes": 3})
    assert (model.fc.out_features, model.fc.weight.is_meta) == (3, True)
    with pytest.raises(CkptError, match=r"timm has no model 'resnt18'. Did you mean resnet18"):
        locate("timm:resnt18")


@pytest.mark.parametrize(
    ("package", "spec", "message"),
    [
        ("torchvision", "torchvision:resnet18",
         "a model of torchvision needs the package torchvision, which is not installed. "
         "Install it with: pip install 'ckpt-tools[torch]'"),
        ("timm", "timm:resnet18",
         "a model of timm needs the package timm, which is not installed. "
         "Install it with: pip install 'ckpt-tools[timm]'"),
    ],
)  # fmt: skip
def test_a_package_that_is_absent(monkeypatch, package, spec, message):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency) as caught:
        locate(spec)
    assert str(caught.value) == message


# --- no network


NETWORK = """
import socket, urllib.request
from torch import hub, nn

def pretrained():
    hub.load_state_dict_from_url("https://weights.example/{}.pth".format("resnet"), progress=False)
    return nn.Linear(1, 1)

def stubborn():
    for attempt in range(1000):
        try:
            socket.create_connection(("192.0.2.1", 80))
        except OSError:
            pass

def content():
    try:
        urllib.request.urlopen("http://news.example/")
    except OSError:
        pass
    return nn.Linear(5, 1)

def local(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    return nn.Linear(6, 1)
"""


def test_nothing_is_downloaded(nets, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(nets / "hub"))
    (nets / "network.py").write_text(NETWORK)
    for name, host in (("pretrained", "weights.example"), ("stubborn", "192.0.2.1")):
        with pytest.raises(CkptError) as caught:
            locate(f"network.py:{name}")
        assert str(caught.value) == (
            f"network.py:{name} wants to download something from {host}, such as pretrained weights. "
            "Have it built without, by an argument of its own such as --kwargs pretrained=false"
        )
    assert locate("network.py:content").in_features == 5
    path = os.path.relpath(nets / "socket")  # such paths are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert locate("network.py:local", [path]).in_features == 6


def test_the_process_is_left_as_it_was(nets):
    lookup, connect, path, out = socket.getaddrinfo, socket.socket.connect, list(sys.path), sys.stdout
    numbers = random.getstate()
    locate("pack.nets:Net", [2])
    with pytest.raises(CkptError):
        locate("pack.nets:raises", [2])
    assert (socket.getaddrinfo, socket.socket.connect, sys.path, sys.stdout) == (lookup, connect, path, out)
    assert random.getstate() == numbers


# --- the model in the file


def test_a_pickled_model_needs_trust(nets, fixtures_dir):
    checkpoint = open_checkpoint(fixtures_dir / "model" / "cnn.pt")
    with pytest.raises(CkptError) as caught:
        locate("pickle", checkpoint=checkpoint)
    assert str(caught.value).startswith(f"loading the pickled {checkpoint.module.class_name} runs what the file says")
    with pytest.raises(CkptError, match="it holds no pickled module"):
        locate("pickle", checkpoint=open_checkpoint(fixtures_dir / "zip" / "mlp.pt"), trust=True)
    with pytest.raises(CkptError, match="it holds no pickled module"):
        locate("pickle", trust=True)


def test_a_pickled_model_is_loaded_with_its_weights(nets):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    torch.save({"epoch": 1, "nets": [model]}, "nested.pt")
    torch.save(model, "legacy.pt", _use_new_zipfile_serialization=False)
    data = (nets / "nested.pt").read_bytes()
    (nets / "other.pt").write_bytes(b"before" + data + b"after")
    inside = open_source("other.pt").slice(6, len(data), "inside")
    for target in ("nested.pt", "legacy.pt", data, inside):
        checkpoint = open_checkpoint(target)
        found = locate("pickle", checkpoint=checkpoint, trust=True)
        assert torch.equal(found[0].weight, model[0].weight)
        assert not found[0].weight.requires_grad


def test_a_pickled_model_whose_class_is_gone(nets):
    sys.path.insert(0, str(nets))
    try:
        from pack import nets as module
    finally:
        sys.path.remove(str(nets))
    torch.save(module.Net(2), "net.pt")
    del module.Net
    with pytest.raises(CkptError) as caught:
        locate("pickle", checkpoint=open_checkpoint("net.pt"), trust=True)
    assert str(caught.value).startswith("its class pack.nets.Net cannot be imported: AttributeError: ")
    assert str(caught.value).endswith("Run where it can be, or name the class as it is now: module:Class")
