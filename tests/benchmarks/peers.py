"""``python -m tests.benchmarks.peers``: what four other scanners say of the attacks and of the benign files.

Each is installed in an environment of its own (``--venvs DIR`` keeps and reuses them) and asked through its own
library about one file after the other; an answer counts as its command's exit code would. Writes docs/peers.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile import attacks, second_search, third_search

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = ("found", "not examined", "clean")

_LOOP = """
import contextlib, json, os, signal, sys, warnings
warnings.simplefilter("ignore")
out = os.fdopen(os.dup(1), "w")  # what they print themselves is not wanted
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.dup2(1, 2)
def late(*_):
    raise TimeoutError
signal.signal(signal.SIGALRM, late)
def files(path):
    return [os.path.join(path, n) for n in sorted(os.listdir(path))] if os.path.isdir(path) else [path]
for path in sys.stdin.read().split("\\n"):
    signal.alarm(30)
    try:
        said = judge(path)
    except BaseException:
        said = "not examined"
    signal.alarm(0)
    print(json.dumps([path, said]), file=out, flush=True)
"""

DRIVERS = {
    "picklescan": """
from picklescan.scanner import scan_directory_path, scan_file_path
import os
def judge(path):
    found = (scan_directory_path if os.path.isdir(path) else scan_file_path)(path)
    if found.issues_count:
        return "found"
    return "not examined" if found.scan_err or not found.scanned_files else "clean"
""",
    "modelscan": """
from modelscan.modelscan import ModelScan
def judge(path):
    scan = ModelScan()
    scan.scan(path)
    if scan.issues.all_issues:
        return "found"
    return "not examined" if scan.errors or not scan.scanned else "clean"
""",
    "fickling": """
import zipfile
from fickling.loader import scan_file, scan_zip_archive
def judge(path):
    said = []
    for file in files(path):
        if zipfile.is_zipfile(file):
            results = list(scan_zip_archive(file, graceful=True).values())
        else:
            results = [scan_file(file, graceful=True)]
        said += ["not examined" if not r.results else "found" if not r.is_safe else "clean" for r in results]
    return "found" if "found" in said else "clean" if "clean" in said and "not examined" not in said else "not examined"
""",
    "modelaudit": """
import os
os.environ["PROMPTFOO_DISABLE_TELEMETRY"] = "1"
from modelaudit.core import scan_model_directory_or_file
from modelaudit.core_results import determine_exit_code, results_have_security_findings
def judge(path):
    results = scan_model_directory_or_file(path, timeout=50)
    if results_have_security_findings(results):
        return "found"
    return "clean" if determine_exit_code(results) == 0 else "not examined"
""",
}
"""For each peer, how its library is asked for what its command would exit with."""

UNDECLARED = {"fickling": ("typing_extensions",)}
"""What a peer imports and does not ask for."""

OURS = """
from ckpt_tools.audit.engine import audit
from ckpt_tools.audit.results import exit_code
def judge(path):
    return ("clean", "found", "not examined")[exit_code(list(audit([path])), "error")]
"""


def python_of(peer: str, venvs: Path) -> Path:
    """The interpreter of *peer*'s environment, which is made where it is missing."""
    python = venvs / peer / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venvs / peer)], check=True)
    probe = [str(python), "-c", f"import {peer}"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "-q", peer, *UNDECLARED.get(peer, ())], check=True)
    return python


def version_of(python: Path, peer: str) -> str:
    """The version that is installed."""
    ask = f"from importlib.metadata import version; print(version({peer!r}))"
    return subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def ask(python: Path, driver: str, paths: list[str]) -> dict[str, str]:
    """What a scanner says of each of *paths*; one that takes its process with it is asked about the rest anew."""
    answers: dict[str, str] = {}
    left = paths
    while left:
        process = subprocess.run(
            [str(python), "-c", driver + _LOOP],
            input="\n".join(left),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PROMPTFOO_DISABLE_TELEMETRY": "1"},
            check=False,
        )
        answers |= dict(json.loads(line) for line in process.stdout.splitlines())
        if process.returncode and not answers:
            raise RuntimeError(process.stderr)
        left = left[len([path for path in left if path in answers]) :]
        if left:
            answers[left[0]] = "not examined"
            left = left[1:]
    return answers


def _all(*makers: Callable[[], list[attacks.Attack]]) -> Callable[[], list[attacks.Attack]]:
    return lambda: [attack for make in makers for attack in make()]


GROUPS = {
    "names": _all(attacks.named, second_search.advisories, third_search.advisories, third_search.chains),
    "ways to call": _all(attacks.spellings, second_search.said_otherwise),
    "broken streams": attacks.broken,
    "containers": _all(
        attacks.containers,
        second_search.archives,
        second_search.reserved,
        second_search.polyglots,
        third_search.elsewhere,
    ),
    "unreadable formats": attacks.unread,
    "other than pickles": _all(
        attacks.elsewhere,
        second_search.programs,
        second_search.graphs,
        third_search.configurations,
        third_search.programs,
        third_search.held,
    ),
    "combinations": _all(attacks.gadgets, second_search.filled),
    "objects restored": _all(
        second_search.restored,
        second_search.compiled,
        third_search.constructed,
        third_search.joblib,
        third_search.started,
    ),
}


def hostile(folder: Path) -> Iterator[tuple[str, str]]:
    """The attacks as files; each with its group."""
    for group, make in GROUPS.items():
        for number, attack in enumerate(make()):
            path = folder / f"{group.replace(' ', '_')}_{number}{attack.suffix}"
            if attack.files:
                path.mkdir()
                for name, data in attack.files:
                    (path / name).write_bytes(data)
            else:
                path.write_bytes(attack.data)
            yield group, str(path)


FAMILIES = """
alexnet convnext_tiny densenet121 efficientnet_b0 fasterrcnn_mobilenet_v3_large_320_fpn fcn_resnet50 googlenet
lraspp_mobilenet_v3_large mnasnet0_5 mobilenet_v2 r3d_18 raft_small regnet_y_400mf resnet18 shufflenet_v2_x0_5
squeezenet1_0 ssdlite320_mobilenet_v3_large swin_t vgg11 vit_b_16
"""
"""One model of most of torchvision's families."""


def benign(folder: Path) -> Iterator[tuple[str, str]]:
    """The benign files, torchvision's models included."""
    from tests.audit.benign import files, saved, torchvision_models

    for number, (name, data) in enumerate(files()):
        path = folder / f"{number}{Path(name).suffix}"
        path.write_bytes(data)
        yield "training scripts", str(path)
    for name, make in torchvision_models(FAMILIES.split()):
        model = make()
        for group, value in (("torchvision, state_dict", model.state_dict()), ("torchvision, whole model", model)):
            path = folder / f"{name}_{len(group)}.pt"
            path.write_bytes(saved(value))
            yield group, str(path)


def table(title: str, cases: list[tuple[str, str]], said: dict[str, dict[str, str]], wanted: str) -> str:
    """A table of how many of *cases* of each group every scanner gives the answer *wanted*."""
    groups = Counter(group for group, _ in cases)
    lines = [f"| {title} | files | {' | '.join(said)} |", "| --- " * (len(said) + 2) + "|"]
    for group, size in groups.items():
        hits = [sum(answers[path] == wanted for g, path in cases if g == group) for answers in said.values()]
        lines.append(f"| {group} | {size:,} | {' | '.join(f'{hit:,}' for hit in hits)} |")
    for answer in ANSWERS:
        hits = [sum(answers[path] == answer for _, path in cases) for answers in said.values()]
        lines.append(f"| **{answer}, in all** | {len(cases):,} | {' | '.join(f'**{hit:,}**' for hit in hits)} |")
    return "\n".join(lines)


def page(versions: dict[str, str], tables: list[str]) -> str:
    """docs/peers.md."""
    listed = ", ".join(f"{peer} {version}" for peer, version in versions.items())
    return "\n\n".join(
        [
            "# The audit and its peers",
            "Written by `python -m tests.benchmarks.peers`, which installs each scanner in an environment of its own "
            f"and asks it about every file of two sets: {listed}; {datetime.date.today().isoformat()}. "
            "*Found* is what would fail a pipeline by its exit code; *not examined* is an error, or nothing scanned; "
            "*clean* passes.",
            "The attacks (`tests/hostile`) are those that were published against these scanners and "
            "torch's loader, with their identifiers, and further ones of ours, so the set was not made by someone "
            "neutral: it holds what we know to look for. Many of the published ones are fixed in the versions asked "
            "here. The benign files (`tests/audit/benign.py`) are what torch, numpy and training scripts really "
            "write; of those, only what is found counts against a scanner.",
            tables[0],
            tables[1],
            "What `ckpt audit` finds in benign files is none that it calls dangerous, but findings of other families "
            "(the bounds of an observer that has seen nothing are infinite). fickling calls every import from outside "
            "of the standard library unsafe, `torch._utils` included, by design. modelaudit warns of names of packages "
            "that are not installed beside it, torch among them, and its exit code counts warnings; picklescan's list "
            "holds `functools.partial`, and modelscan's like it `getattr`, which whole models and hyperparameters use.",
        ]
    )


def main() -> int:
    """Install, ask and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, help="where the environments are kept")
    parser.add_argument("--missed", action="store_true", help="list what each scanner passes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        venvs = options.venvs or base / "venvs"
        (base / "hostile").mkdir()
        (base / "benign").mkdir()
        bad, good = list(hostile(base / "hostile")), list(benign(base / "benign"))
        paths = [path for _, path in (*bad, *good)]
        said = {"ckpt audit": ask(Path(sys.executable), OURS, paths)}
        versions: dict[str, str] = {}
        for peer, driver in DRIVERS.items():
            python = python_of(peer, venvs)
            versions[peer] = version_of(python, peer)
            said[peer] = ask(python, driver, paths)
        if options.missed:
            for scanner, answers in said.items():
                print(scanner, "passes", [Path(path).name for _, path in bad if answers[path] == "clean"])
                print(scanner, "alarms", [Path(path).name for _, path in good if answers[path] == "found"])
    tables = [table("attacks found", bad, said, "found"), table("benign files called clean", good, said, "clean")]
    text = page(versions, tables)
    (ROOT / "docs" / "peers.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
