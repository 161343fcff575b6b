"""``ckpt verify`` and ``ckpt_tools.verify``: the process that builds the model, and what comes out at the end."""

import json
import os
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

import ckpt_tools
from ckpt_tools import CkptError
from ckpt_tools.errors import NotFound
from ckpt_tools.verification.job import Job
from ckpt_tools.verification.run import specification, verify_each

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs/schema/verify.schema.json").read_text("utf-8"))
NETS = str(ROOT / "fixtures/nets.py")
STATE_DICT = ROOT / "fixtures/verify/state_dict.pt"

HOSTILE = {
    "exits": "import os\nprint('going', flush=True)\nos._exit(3)\n",
    "dies": "import ctypes\nprint('falling', flush=True)\ndef fall():\n    ctypes.string_at(0)\nfall()\n",
    "hangs": "import time\ndef wait():\n    while True:\n        time.sleep(60)\nwait()\n",
    "leaves": "import sys\nsys.exit('usage: train DATA')\n",
    "raises": "raise LookupError('no such thing')\n",
    "downloads": "import urllib.request\nurllib.request.urlopen('http://weights.example/vgg19.pth')\n",
    "asks": "input('Download? [y/n] ')\n",
    "prints": """
import sys
from torch import nn
print('{"event": "done"}')
print("x" * 200_000, file=sys.stderr)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        print("built")
""",
}


def hostile(folder, name, seconds=60.0):
    (folder / f"{name}.py").write_text(HOSTILE[name])
    (found,) = verify_each([Job(str(STATE_DICT), f"{folder}/{name}.py:Net", seconds=seconds)])
    return found


@pytest.mark.parametrize(
    ("name", "code", "words", "output"),
    [
        ("exits", "crashes", "the process ended itself with exit code 3", "going"),
        ("dies", "crashes", "the process died of SIGSEGV (segmentation fault), in ", "falling"),
    ],
)
def test_class_that_ends_its_process(name, code, words, output, tmp_path):
    found = hostile(tmp_path, name)
    assert [(p.code, p.severity) for p in found.problems] == [(code, "error")]
    assert found.problems[0].message.startswith("importing and building the class did not end: ")
    assert words in found.problems[0].message
    if name == "dies":
        assert f"{name}.py, line 4" in found.problems[0].message
    assert found.output.startswith(output)
    assert [check.verdict for check in found.checks] == ["passed", "failed", *["skipped"] * 6]
    assert found["keys"].message == "the process ended in builds"


def test_class_that_hangs(tmp_path):
    begun = time.monotonic()
    found = hostile(tmp_path, "hangs", seconds=3.0)
    assert [(p.code, p.remedy) for p in found.problems] == [("hangs", "--timeout gives it longer")]
    assert found.problems[0].message == (
        f"importing and building the class did not end: it was still running after 3 s, in {tmp_path}/hangs.py, line 4"
    )
    assert time.monotonic() - begun < 200  # and not the minute that it sleeps, for ever


def test_child_lives_through_what_is_only_an_error(tmp_path):
    """One process takes one bad class after another, and a good one at the end."""
    jobs = []
    for name in ("leaves", "raises", "downloads", "asks", "prints"):
        (tmp_path / f"{name}.py").write_text(HOSTILE[name])
        jobs.append(Job(str(STATE_DICT), f"{tmp_path}/{name}.py:Net"))
    jobs.append(Job(str(STATE_DICT), f"{NETS}:Transfer", inputs=["3,8,8"]))
    jobs.append(Job(str(STATE_DICT), f"{NETS}:Transfer", frozen=["nothing"]))
    jobs.append(Job(str(STATE_DICT.with_name("half.pt")), f"{NETS}:Classifier", kwargs={"num_classes": 2}))
    leaves, raises, downloads, asks, prints, good, wrong, half = verify_each(jobs)
    assert "importing" in leaves.problems[0].message
    assert "SystemExit: usage: train DATA" in leaves.problems[0].message
    assert "LookupError: no such thing" in raises.problems[0].message
    assert f"{tmp_path}/raises.py, line 1" in raises.problems[0].message
    assert "ckpt-tools lets nothing be downloaded (from weights.example)" in downloads.problems[0].message
    assert downloads.codes == ["wants-download"]
    assert "EOFError" in asks.problems[0].message
    assert prints.codes == ["unexpected-tensors"]
    assert prints.output.endswith("built\n")
    assert len(prints.output) == 64 << 10
    assert (good.passed, good.codes, good.output) == (True, ["training-mode"], "")
    assert isinstance(wrong, CkptError)
    assert str(wrong) == f"{STATE_DICT}: no parameter's name matches --expect-frozen nothing"
    assert half.codes == ["dtype-converted"]


RUDE = """
import argparse, os, signal, sys, threading, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    def forward(self, x):
        return self.fc(x)

class Forks(Net):
    def __init__(self):
        super().__init__()
        if os.fork() == 0:
            time.sleep(600)

class Threads(Net):
    def __init__(self):
        super().__init__()
        threading.Thread(target=time.sleep, args=(600,)).start()

class Signals(Net):
    def __init__(self):
        super().__init__()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        signal.raise_signal(signal.SIGTERM)

class Arguments(Net):
    def __init__(self):
        super().__init__()
        parser = argparse.ArgumentParser()
        parser.add_argument("--lr", type=float, default=0.1)
        self.options = parser.parse_args()

class Reads(Net):
    def __init__(self):
        super().__init__()
        assert sys.stdin.read() == ""

class Uncopyable(Net):
    def __setstate__(self, state):
        raise RuntimeError("of another version")

class Required(Net):
    def __init__(self):
        super().__init__()
        parser = argparse.ArgumentParser()
        parser.add_argument("--lr", required=True)
        self.options = parser.parse_args()

class Config(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.width, config.classes)

class Hides(Net):
    def __init__(self):
        super().__init__()
        self.extra = [nn.Linear(2, 2)]
    def forward(self, x):
        return self.extra[0](self.fc(x))

class Recurses(Net):
    def forward(self, x):
        return self.forward(x)

class Masked(Net):
    def forward(self, x, mask):
        return self.fc(x) * mask

class Pushes(Net):
    def forward(self, x):
        raise RuntimeError("Found no NVIDIA driver on your system.")

class Leaves(Net):
    def __init__(self):
        super().__init__()
        os.chdir("/")
        os.environ.clear()
        sys.argv[:] = []
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_classes_of_bad_manners(tmp_path):
    """What forks, catches signals, reads the command line or the input, or moves away, is verified all the same."""
    (tmp_path / "rude.py").write_text(RUDE)
    torch.manual_seed(0)
    torch.save({"fc.weight": torch.randn(2, 4), "fc.bias": torch.randn(2)}, tmp_path / "rude.pt")
    polite = ("Forks", "Threads", "Signals", "Arguments", "Reads", "Uncopyable")
    bad = ("Required", "Config", "Hides", "Recurses", "Masked", "Pushes", "Leaves")
    jobs = [Job(str(tmp_path / "rude.pt"), f"{tmp_path}/rude.py:{name}", inputs=["4"]) for name in (*polite, *bad)]
    found = dict(zip((*polite, *bad), verify_each(jobs), strict=True))
    assert not [(name, found[name].codes) for name in (*polite, "Leaves") if found[name].codes]
    assert {found[name]["runs"].verdict for name in (*polite, "Leaves")} == {"passed"}

    def first(name):
        return found[name].problems[0]

    line = RUDE.splitlines().index('        parser.add_argument("--lr", required=True)') + 2
    assert first("Required").message.endswith(f"raised SystemExit: 2 ({tmp_path}/rude.py, line {line})")
    assert "under if __name__ == '__main__'" in first("Required").remedy
    assert "or name a function without arguments that makes the model" in first("Config").remedy
    assert (first("Hides").code, first("Hides").severity) == ("unregistered-layers", "warning")
    assert first("Hides").message.startswith("extra holds layers in a plain list or dict")
    assert found["Hides"]["runs"].facts["outputs"] == [{"path": "", "shape": [1, 2], "dtype": "float32"}]
    line = RUDE.splitlines().index("        return self.forward(x)") + 1
    assert first("Recurses").message.endswith(f"maximum recursion depth exceeded ({tmp_path}/rude.py, line {line})")
    assert first("Recurses").remedy == ""
    assert first("Masked").remedy == "Give an --input for each argument, in their order"
    assert first("Pushes").remedy.startswith("The class moves tensors to a GPU by itself")


def test_pretrained_weights_are_not_fetched(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = ckpt_tools.verify(STATE_DICT, "torchvision:squeezenet1_0", kwargs={"weights": "DEFAULT"})
    assert found.codes == ["wants-download"]
    assert found.problems[0].message == (
        "torchvision:squeezenet1_0 wants to download something from download.pytorch.org, such as pretrained weights"
    )


def test_users_process_stays_as_it_is(tmp_path):
    """Neither torch nor the class is imported here, and nothing else changes."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, random, sys, threading\n"
        "import ckpt_tools\n"
        "from ckpt_tools import verify\n"
        "state = lambda: (os.getcwd(), dict(os.environ), list(sys.path), random.getstate())\n"
        "before = state()\n"
        f"found = verify({str(STATE_DICT)!r}, {NETS + ':Transfer'!r}, input='3,8,8')\n"
        "assert state() == before\n"
        "assert not {'torch', 'numpy', 'nets'} & sys.modules.keys(), 'imported'\n"
        "assert threading.active_count() == 1\n"
        "print(found)\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:3] == [
        f"{STATE_DICT} verifies with {NETS}:Transfer",
        "  passed opens: PyTorch zip archive (torch.save), 10 tensors, 915 elements, 8.1 kB",
        "  passed builds: nets.Transfer, 915 parameters",
    ]


def test_classes_are_found_again_in_another_process():
    from fixtures import nets

    assert specification(nets.Transfer) == "fixtures.nets:Transfer"

    class Local(torch.nn.Module):
        pass

    with pytest.raises(CkptError, match="is made inside a function"):
        specification(Local)
    assert ckpt_tools.verify(STATE_DICT, nets.Transfer, input="3,8,8").passed


def test_without_torch(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('there is none')")
    monkeypatch.syspath_prepend(tmp_path)
    begun = time.monotonic()
    with pytest.raises(CkptError) as raised:
        ckpt_tools.verify(STATE_DICT, "net.py:Net")
    assert str(raised.value) == (
        "building a model from its class needs the package torch, which is not installed. Install it with: "
        "pip install 'ckpt-tools[torch]'"
    )
    assert time.monotonic() - begun < 200


def test_what_cannot_be_asked():
    with pytest.raises(NotFound, match="no such file"):
        ckpt_tools.verify("nowhere.pt", "torch.nn:Linear")
    with pytest.raises(CkptError, match="is not a file of this machine"):
        ckpt_tools.verify("https://example.org/model.pt", "torch.nn:Linear")


def test_command_line(run, fixtures_dir, tmp_path):
    files = [fixtures_dir / "verify" / f"{name}.pt" for name in ("state_dict", "data_parallel")]
    model = ["--model", f"{NETS}:Transfer", "--input", "3,8,8"]
    report = tmp_path / "report.json"
    done = run("verify", *files, *model, "--format", "json", "-o", report)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "")
    told = json.loads(report.read_text())
    jsonschema.validate(told, SCHEMA)
    assert [file["passed"] for file in told["files"]] == [True, False]
    assert [p["code"] for c in told["files"][1]["checks"] for p in c["problems"]] == ["wrapped-names", "training-mode"]
    # a missing file is told, and the others are done all the same
    done = run("verify", files[0], "nowhere.pt", *model, "--format", "junit")
    assert (done.exit_code, done.stderr) == (2, "ckpt: nowhere.pt: no such file\n")
    suites = ElementTree.fromstring(done.stdout)
    assert suites.attrib == {"name": "ckpt verify", "tests": "8", "failures": "0", "errors": "0", "skipped": "1"}
    assert [case.attrib["name"] for case in suites.iter("testcase")] == [
        "opens", "builds", "keys", "transfer", "loads", "runs", "round-trip", "resume",
    ]  # fmt: skip
    skipped = [case.find("skipped") for case in suites.iter("testcase") if case.find("skipped") is not None]
    assert [element.attrib["message"] for element in skipped] == ["the file holds no optimizer"]


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("text", ["FAILED   keys", "error wrapped-names", "→ rename module.backbone"]),
        ("markdown", ["wrapped-names", "| FAILED"]),
        ("html", ["wrapped-names", "<!doctype html>"]),
        ("github", ["::error file=", "title=keys wrapped-names::names begin with module."]),
        ("gitlab", ['"check_name": "keys wrapped-names"', '"severity": "critical"']),
        ("sarif", ['"ruleId": "keys"', '"ruleIndex": 2', '"problem": "wrapped-names"', '"id": "round-trip"']),
        ("junit", ['<failure type="error" message="loaded 0 of 10 tensors', "error wrapped-names: names begin"]),
    ],
)
def test_formats(format, words):
    from ckpt_tools.cli.verify import reports_in
    from ckpt_tools.render import render
    from ckpt_tools.verification.results import CHECKS, Check, Problem, Verification

    problem = Problem("wrapped-names", "error", "names begin with module.", "rename module.backbone to backbone")
    checks = [
        Check(name, "loaded 0 of 10 tensors" if name == "keys" else "fine", [problem] if name == "keys" else [])
        for name in CHECKS
    ]
    found = Verification("model.pt", "net.py:Net", checks, "printed")
    text = render(reports_in([found], format), format, command="verify")
    lowered = text.lower() if format == "html" else text
    assert [word for word in words if (word.lower() if format == "html" else word) not in lowered] == []


def test_severity_that_fails(run, fixtures_dir):
    words = [fixtures_dir / "verify/half.pt", "--model", f"{NETS}:Classifier", "--kwargs", "num_classes=2"]
    done = run("verify", *words, "--fail-on", "warning")
    assert done.exit_code == 1
    assert "verifies with" in done.stdout


def test_wrong_options(run):
    for words, said in (
        (["--min-loaded", "lots"], "is no share such as 95%"),
        (["--kwargs", "num_classes"], "'num_classes' is not key=value"),
    ):
        done = run("verify", STATE_DICT, "--model", "torch.nn:Linear", *words)
        assert done.exit_code == 2
        assert said in done.stderr
    done = run("verify", STATE_DICT, STATE_DICT, "--model", "torch.nn:Linear", "--record", "x.npz")
    assert (done.exit_code, "are for one file" in done.stderr) == (2, True)
