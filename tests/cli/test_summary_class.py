"""``ckpt summary --model``: flags and forward pass of the class, from the command line."""

import json
import sys
from types import SimpleNamespace

import pytest

from ckpt_tools.cli import main

torch = pytest.importorskip("torch")
nn = torch.nn

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        print("hello")
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, classes)
        self.body.requires_grad_(False)

    def forward(self, x):
        print("forward")
        return self.head(self.body(x))
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The command line in this process, in the test's folder: importing torch anew for each takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ckpt", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(exit_code=left.value.code, stdout=out, stderr=err)

    yield run
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "little.py").write_text(NET)
    entries = {
        "body.0.weight": torch.zeros(8, 4),
        "body.0.bias": torch.zeros(8),
        "head.weight": torch.zeros(2, 8),
        "head.bias": torch.zeros(2),
    }
    torch.save(entries, tmp_path / "bare.pt")
    torch.save({f"module.{name}": tensor for name, tensor in entries.items()}, tmp_path / "wrapped.pt")
    return tmp_path


def test_flags_of_the_class_decide(run, folder):
    for path in ("bare.pt", "wrapped.pt"):
        done = run("summary", path, "--model", "little.py:Net", "--kwargs", "classes=2")
        assert (done.exit_code, done.stderr) == (0, "hello\n")
        assert done.stdout.startswith(f"{path}: 58 parameters: 18 trainable, 40 frozen (as the class builds it)\n")


def test_the_forward_pass_as_text(run, folder):
    words = ("--model", "little:Net", "--args", "[2]", "--input", "4", "--batch", "3")
    done = run("summary", "bare.pt", *words)
    assert (done.exit_code, set(done.stderr.splitlines())) == (0, {"hello", "forward"})
    assert done.stdout.endswith(
        """
As the class runs it
  input   3×4 float32
  run on  the meta device: shapes alone, nothing was computed
  class   its tensors are those of the file, by name and shape

Forward pass
  layer    class       output  parameters  mult-adds  activations
  (model)  Net         3×2
    body   Sequential  3×8
      0    Linear      3×8             40        120         96 B
      1    ReLU        3×8                                   96 B
    head   Linear      3×2             18         54         24 B
  total                                58        174        216 B
  a line has its own numbers, not those of the lines inside it
"""
    )
    done = run("summary", "bare.pt", *words, "--depth", "1")
    assert "    body   Sequential  3×8             40        120        192 B\n    head" in done.stdout


def test_a_class_that_is_not_quite_the_files(run, folder):
    done = run("summary", "bare.pt", "--model", "little.py:Net", "--args", "[5]", "--input", "4")
    assert done.exit_code == 0
    told = "class   it is not quite the file's: 2 tensors in another shape (head.weight, head.bias)"
    assert told in done.stdout


def test_the_forward_pass_as_data(run, folder):
    options = ("--model", "little.py:Net", "--args", "[2]", "--input", "4", "--batch", "0", "--format", "json")
    done = run("summary", "wrapped.pt", *options)
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    (found,) = (file["forward"] for file in data["files"])
    assert found["ran_on"] == "meta"
    assert found["why_not_meta"] is None
    assert found["inputs"] == [{"shape": [4], "dtype": "float32"}]
    assert found["totals"] == {"parameters": 58, "trainable": 18, "mult_adds": 58, "activation_bytes": 72}
    assert found["layers"][2] == {
        "name": "body.0",
        "class": "Linear",
        "depth": 2,
        "outputs": [{"path": "", "shape": [8], "dtype": "float32"}],
        "parameters": 40,
        "shared_parameters": 0,
        "mult_adds": 40,
        "activation_bytes": 32,
        "called": True,
    }


def test_a_pickled_model(run, tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    torch.save(model, tmp_path / "full.pt")
    done = run("summary", "full.pt", "--model", "pickle", "--input", "4")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "ckpt: full.pt: loading the pickled torch.nn.modules.container.Sequential runs what the file says"
    )
    done = run("summary", "full.pt", "--model", "pickle", "--trust", "--input", "4")
    assert (done.exit_code, done.stderr) == (0, "")
    # the file records its flags, so that the class has no say
    assert done.stdout.startswith("full.pt: 58 parameters: 18 trainable, 40 frozen (recorded in the file)\n")
    assert "as the class builds it" not in done.stdout
    assert "  total                                58         58         40 B\n" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nothing:Net"], "ckpt: there is no module 'nothing'. "),
        (
            ["--model", "little.py:Net"],
            "ckpt: little.py:Net needs arguments: classes. Give them with --kwargs classes=VALUE",
        ),
        (["--model", "little.py:Net", "--args", "2"], "ckpt: the arguments are no JSON list: 2. "),
        (["--model", "little.py:Net", "--args", "[2]", "--input", "4x4"], "ckpt: '4x4' is no input. "),
        (
            ["--model", "little.py:Net", "--args", "[2]", "--input", "5"],
            "ckpt: bare.pt: the forward pass on cpu fails in body.0 (Linear): RuntimeError: mat1 and mat2 shapes",
        ),
        (["--input", "4"], "Error: --input is for --model"),
        (["--kwargs", "classes=2"], "Error: --args, --kwargs and --trust are for --model"),
    ],
)
def test_what_cannot_be_done(run, folder, options, message):
    done = run("summary", "bare.pt", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_torch_is_not_needed_without_the_option_and_named_with_it(folder, monkeypatch, run):
    for name in [name for name in sys.modules if name.startswith("ckpt_tools.runtime")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("summary", "bare.pt").exit_code == 0
    done = run("summary", "bare.pt", "--model", "little.py:Net", "--args", "[2]")
    assert (done.exit_code, done.stdout, done.stderr) == (
        2,
        "",
        "ckpt: building a model from its class needs the package torch, which is not installed. "
        "Install it with: pip install 'ckpt-tools[torch]'\n",
    )
