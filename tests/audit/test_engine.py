"""The audit of many files: what is looked at, what is told, and what one file's fault does to the others."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_tools.audit import baseline, engine
from ckpt_tools.audit.cache import Cache
from ckpt_tools.audit.engine import audit, judged
from ckpt_tools.audit.findings import Severity
from ckpt_tools.audit.inputs import Target, targets
from ckpt_tools.audit.policy import Options, Policy, Requirement, Waiver
from ckpt_tools.audit.results import Audited, exit_code, fingerprints, summed
from ckpt_tools.audit.subject import Subject
from ckpt_tools.errors import CkptError
from ckpt_tools.sources import MemorySource
from tests.audit.archives import MLP, contents, packed, with_member
from tests.audit.cases import FIXTURES
from tests.hostile.assembler import call, new, stream

CUT = str(FIXTURES / "refused/cut.safetensors")
GOOD = str(FIXTURES / "zip/mlp.pt")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project: models, a sharded one with a stray file beside its shards, and what is no model."""
    (tmp_path / "models").mkdir()
    shutil.copy(GOOD, tmp_path / "models" / "b.pt")
    shutil.copy(CUT, tmp_path / "models" / "a.safetensors")
    shutil.copy(GOOD, tmp_path / "models" / "weights")  # no suffix, a checkpoint by content
    (tmp_path / "models" / "page.pth").write_text("<html><title>404</title></html>")
    shutil.copytree(FIXTURES / "sharded/safetensors", tmp_path / "shards")
    shutil.copy(GOOD, tmp_path / "shards" / "optimizer.bin")
    (tmp_path / "README.md").write_text("# Models\n")
    (tmp_path / "train.py").write_text("import torch\n")
    (tmp_path / "noise.dat").write_bytes(bytes(range(256)))
    (tmp_path / "__pycache__").mkdir()
    shutil.copy(CUT, tmp_path / "__pycache__" / "x.pt")
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Dask cluster of two processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as running:
        yield running.scheduler_address


def short(results: list[Audited], root: Path) -> list[tuple[str, str]]:
    return [
        (os.path.relpath(r.path, root), "skipped" if r.skipped else "failed" if r.failure else r.format or "refused")
        for r in results
    ]


def test_every_file_below_a_folder_is_looked_at(tree: Path) -> None:
    assert short(list(audit([str(tree)])), tree) == [
        ("README.md", "skipped"),
        ("models/a.safetensors", "refused"),
        ("models/b.pt", "torch_zip"),
        ("models/page.pth", "refused"),
        ("models/weights", "torch_zip"),
        ("noise.dat", "skipped"),
        ("shards", "sharded"),
        ("shards/optimizer.bin", "torch_zip"),
        ("train.py", "skipped"),
    ]


def test_a_folder_that_cannot_be_read_comes_once_and_its_files_after_it(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(stream(call("os:system", "true")))  # without a .metadata
    results = list(audit([str(tmp_path)]))
    assert [result.path for result in results] == [str(tmp_path), str(tmp_path / "__0_0.distcp")]
    assert [result.failure for result in results] == ["", ""]
    assert results[1].answer == "dangerous"


def test_models_of_tokenizers_are_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02" * 20)
    shutil.copy(GOOD, tmp_path / "model.pt")
    results = {os.path.basename(result.path): bool(result.skipped) for result in audit([str(tmp_path)])}
    assert results == {"model.pt": False, "tokenizer.model": True}


def test_what_is_named_is_never_skipped(tree: Path) -> None:
    (result,) = audit([str(tree / "README.md")])
    assert [finding.code for finding in result.findings] == ["I101"]


def test_processes_make_no_difference(tree: Path) -> None:
    alone = [result.data() for result in audit([str(tree), CUT])]
    assert [result.data() for result in audit([str(tree), CUT], jobs=2)] == alone


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``ckpt audit`` in a process of its own, in *tree*, whose ``sitecustomize.py`` it runs first."""
    return subprocess.run(
        [sys.executable, "-m", "ckpt_tools", "audit", *arguments, "--format", "json"],
        env={**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
    )


WATCH = """
import os
from ckpt_tools.audit import engine
look = engine._look_at
def watched(target, options):
    with open("processes", "a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\\n")
    return look(target, options)
engine._look_at = watched
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are only used where they are asked for")
def test_many_files_are_shared_among_processes_and_come_in_their_order(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for number in range(engine.MANY):
        shutil.copy(GOOD if number % 3 else CUT, models / f"{number:02}.pt")
    (tmp_path / "sitecustomize.py").write_text(WATCH + "import ckpt_tools.forks\nckpt_tools.forks.cores = lambda: 2\n")
    shared = run(tmp_path, "models")
    lines = [line.split() for line in (tmp_path / "processes").read_text().splitlines()]
    assert len(lines) == engine.MANY
    assert len({pid for pid, _ in lines}) <= 2
    assert {parent for _, parent in lines}.isdisjoint({pid for pid, _ in lines})
    (tmp_path / "processes").unlink()
    alone = run(tmp_path, "models", "--jobs", "1")
    assert len(set((tmp_path / "processes").read_text().splitlines())) == 1
    assert (shared.stdout, shared.stderr, shared.returncode) == (alone.stdout, alone.stderr, alone.returncode)
    names = [os.path.basename(file["path"]) for file in json.loads(alone.stdout)["files"]]
    assert names == [f"{number:02}.pt" for number in range(engine.MANY)]


def test_few_files_are_looked_at_by_one_process(tree: Path) -> None:
    (tree / "sitecustomize.py").write_text(WATCH)
    run(tree, "models")
    assert len(set((tree / "processes").read_text().splitlines())) == 1


def test_a_process_takes_short_files_together_and_long_ones_alone(tmp_path: Path) -> None:
    found = []
    for number, size in enumerate([10, 10, 2 * engine.SHORT, 10, engine.SHORT - 5, *[1] * (engine.AT_ONCE + 2)]):
        path = tmp_path / f"{number}"
        path.write_bytes(b"")
        os.truncate(path, size)
        found.append(Target(str(path)))
    found.append(Target("https://host/x.pt"))
    lengths = [len(several) for several in engine._together(found, engine.AT_ONCE)]
    # 10 and 10; what is too long for two; 10; all but 5 of what goes together, and five more of one byte; the rest
    assert lengths == [2, 1, 1, 6, engine.AT_ONCE - 2]
    assert [target for several in engine._together(found, engine.AT_ONCE) for target in several] == found
    assert all(len(several) == 1 for several in engine._together(found, 1))


def test_a_cluster_makes_no_difference(tree: Path, cluster: str) -> None:
    alone = [result.data() for result in audit([str(tree)])]
    assert [result.data() for result in audit([str(tree)], dask=cluster)] == alone


def test_a_killed_worker_costs_its_file_and_no_other(tree: Path) -> None:
    code = (
        "import os, sys\n"
        "from ckpt_tools.audit import engine\n"
        "look = engine._look_at\n"
        "def examine(target, options):\n"
        "    if target.path.endswith('b.pt'):\n"
        "        os._exit(9)\n"
        "    return look(target, options)\n"
        "engine._look_at = examine\n"
    )
    (tree / "sitecustomize.py").write_text(code)
    done = run(tree, "models", "--jobs", "2")
    files = json.loads(done.stdout)["files"]
    assert [(os.path.basename(file["path"]), bool(file["failure"])) for file in files] == [
        ("a.safetensors", False),
        ("b.pt", True),
        ("page.pth", False),
        ("weights", False),
    ]
    assert done.returncode == 2


def test_globs_and_what_is_not_there(tree: Path) -> None:
    results = list(audit([str(tree / "models" / "*.pt"), str(tree / "none.pt"), str(tree / "*.onnx")]))
    assert [(os.path.basename(r.path), bool(r.failure)) for r in results] == [
        ("b.pt", False),
        ("none.pt", True),
        ("*.onnx", True),
    ]
    assert exit_code(results, "error") == 2


def test_what_a_glob_matches_comes_once_and_need_be_no_model(tree: Path) -> None:
    (tree / "models" / "deep").mkdir()
    shutil.copy(GOOD, tree / "models" / "deep" / "c.pt")
    (tree / "models" / "deep" / "up").symlink_to(tree / "models")
    everything = list(audit([str(tree / "models")]))
    for pattern in ("models/**", "models*/**", "mod*"):
        assert short(list(audit([str(tree / pattern)])), tree) == short(everything, tree)
    found = [os.path.relpath(target.path, tree) for target in targets(str(tree / "**" / "*.pt"))]
    assert found == ["__pycache__/x.pt", "models/b.pt", "models/deep/c.pt"]
    assert [(r.path, bool(r.skipped)) for r in audit([str(tree / "*.md")])] == [(str(tree / "README.md"), True)]


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    shutil.copy(GOOD, tmp_path / "real" / "a.pt")
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    found = [(os.path.relpath(t.path, tmp_path), t.error is not None) for t in targets(str(tmp_path))]
    assert found == [("again/a.pt", False), ("gone.pt", True)]


@pytest.mark.parametrize(
    ("severities", "fail_on", "code"),
    [
        ([], "note", 0),
        (["note"], "note", 1),
        (["note"], "warning", 0),
        (["warning", "note"], "warning", 1),
        (["warning"], "error", 0),
        (["error"], "error", 1),
    ],
)
def test_exit_codes(severities: list[Severity], fail_on: Severity, code: int) -> None:
    subject = Subject.of(MemorySource(MLP, "m.pt"))
    findings = []
    for severity in severities:
        finding = subject.finding("x")
        finding.severity = severity  # type: ignore[misc]
        findings.append(finding)
    assert exit_code([Audited("m.pt", findings=tuple(findings))], fail_on) == code


def test_nothing_examined_is_a_failure() -> None:
    assert exit_code([], "error") == 2
    assert exit_code([Audited("README", skipped="text")], "error") == 2
    assert exit_code([Audited("a.pt"), Audited("b.pt", failure="no such file")], "error") == 2


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "I105"),
        (b"PK\3\4", "I103"),
        (with_member("mlp/x.dat", bytes(range(256))), "I102"),
    ],
)
def test_a_file_that_no_rule_could_look_into_is_never_clean(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    for family in "SNFTP":
        results = list(audit([str(path)], Options(Policy(select=(family,)))))
        assert ([finding.code for finding in results[0].findings], exit_code(results, "error")) == ([code], 1)
    results = list(audit([str(path)], Options(Policy(ignore=("I105",)))))
    assert exit_code(results, "error") == (2 if code == "I105" else 1)


def test_what_was_not_read_fails_whatever_its_severity(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_member("mlp/x.dat", bytes(range(256))))
    results = list(audit([str(path)], Options(Policy(severity={"I102": "note"}))))
    assert [(finding.code, finding.severity) for finding in results[0].findings] == [("I102", "note")]
    assert exit_code(results, "error") == 1


def test_severity_and_selection(tmp_path: Path) -> None:
    (result,) = audit([CUT], Options(Policy(severity={"I103": "warning"})))
    assert [(f.code, f.severity) for f in result.findings] == [("I103", "warning")]
    (result,) = audit([CUT], Options(Policy(ignore=("I103",))))
    assert result.findings == ()


def test_bytes_are_not_read_where_values_are_not_wanted(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(packed(contents())[:-200].replace(bytes(4), b"\xff\xff\xff\xff", 1) + packed(contents())[-200:])
    policy = Policy(select=("I201", "P212"), requirements=(Requirement(sha256="0" * 64),))
    assert {f.code for r in audit([str(path)], Options(policy)) for f in r.findings} >= {"P212"}
    assert [f.code for r in audit([str(path)], Options(policy, values=False)) for f in r.findings] == []


def test_a_waiver_keeps_the_finding_with_its_reason() -> None:
    waivers = (Waiver("I1", "known", path="refused/*", expires=datetime.date(2026, 7, 1)),)
    (result,) = audit([CUT], Options(Policy(waivers=waivers), today=datetime.date(2026, 7, 1)))
    assert result.findings == ()
    assert [(finding.code, reason) for finding, reason in result.waived] == [("I103", "known")]
    (result,) = audit([CUT], Options(Policy(waivers=waivers), today=datetime.date(2026, 7, 2)))
    assert [finding.code for finding in result.findings] == ["I103", "P101"]
    assert result.waived == ()


def test_a_waiver_may_be_for_one_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(stream([call("mypackage.restore:a", 1), call("mypackage.restore:b", 1)]))
    policy = Policy(waivers=(Waiver("S111", "read", name="mypackage.restore.a"),))
    (result,) = audit([str(path)], Options(policy))
    assert [finding.about for finding in result.findings if finding.code == "S111"] == ["mypackage.restore.b"]
    assert [finding.about for finding, _ in result.waived] == ["mypackage.restore.a"]


def test_classes_that_the_policy_lists_are_not_unknown(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(stream([new("mypackage:Net"), new("elsewhere:Net")]))
    requirements = (Requirement(globals=("mypackage.*",)), Requirement(paths=("old/*",), globals=("*",)))
    (result,) = audit([str(path)], Options(Policy(requirements=requirements)))
    assert [(f.code, f.about) for f in result.findings if f.severity != "note"] == [
        ("S112", "elsewhere.Net"),
        ("P203", "elsewhere.Net"),
    ]


def test_globals_of_pickles_in_byte_strings_are_locked_and_asked_for_too(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(stream({"x": stream(new("mypackage:Net"))}))
    (result,) = audit([str(path)], Options(Policy(requirements=(Requirement(globals=()),))))
    assert [f.about for f in result.findings if f.code == "P203"] == ["mypackage.Net"]
    baseline.write(str(tmp_path / "known.json"), [result])
    known = baseline.load(str(tmp_path / "known.json"))
    assert known.locked(str(path)) == ("mypackage.Net",)
    (result,) = audit([str(path)], Options(baseline=known))
    assert [f.code for f in result.findings] == []


def test_a_rule_that_cannot_look_at_everything_says_so() -> None:
    policy = Policy(select=("P",), requirements=(Requirement(sha256="0" * 64),))
    (result,) = audit([str(FIXTURES / "sharded/safetensors")], Options(policy))
    assert [finding.code for finding in result.findings] == ["I102"]
    assert "P212" in result.findings[0].message
    assert "leave P212 out" in result.findings[0].remedy


def test_a_waiver_by_name_needs_all_the_names_of_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(stream([call("collections:deque", []), call("argparse:Namespace")]))
    for name, waived in (("argparse.*", []), ("*.[dN]e*", []), ("[ac]*", ["S113"])):
        (result,) = audit([str(path)], Options(Policy(waivers=(Waiver("S113", "plain", name=name),))))
        assert [finding.code for finding, _ in result.waived] == waived


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy(base="nowhere.pt"), "nowhere.pt: cannot be read"),
        (Policy(torch="newest"), "torch is 'newest', no version such as 2.4"),
        (Policy(select=("X",)), "select names 'X', which is no rule"),
    ],
)
def test_what_no_file_could_be_held_against_is_an_error(policy: Policy, says: str) -> None:
    with pytest.raises(CkptError) as caught:
        list(audit([GOOD], Options(policy)))
    assert says in str(caught.value)


def test_a_fault_of_ours_does_not_stop_the_others(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject, *, named: bool) -> Audited:
        if subject.path.endswith("b.pt"):
            raise RuntimeError("a bug")
        return judged(subject, named=named)

    monkeypatch.setattr("ckpt_tools.audit.engine.judged", broken)
    results = list(audit([str(tree / "models")]))
    assert [bool(r.failure) for r in results] == [False, True, False, False]
    assert "internal error: RuntimeError: a bug" in results[1].failure


def test_results_survive_json(tree: Path) -> None:
    for result in audit([str(tree), str(FIXTURES / "training"), "docs/files/runs_a_command.pkl"]):
        data = json.loads(json.dumps(result.data()))
        assert json.loads(json.dumps(Audited.of(data, result.path).data())) == data


# --- fingerprints and baseline


def test_fingerprints_outlive_numbers_and_tell_twins_apart() -> None:
    subject = Subject.of(MemorySource(MLP, "m.pt"))
    one = subject.finding("3 tensors", member="a", offset=3)
    two = subject.finding("4 tensors", member="a", offset=9)
    other = subject.finding("3 tensors", member="b", offset=3)
    named = subject.finding("3 tensors", member="a", evidence={"global": "os.system"})
    assert list(fingerprints([one])) == list(fingerprints([two]))
    assert len(set(fingerprints([one, two, other, named]))) == 4


def test_a_path_may_be_written_in_several_ways(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    one, other = (next(iter(audit([path]))) for path in ("models/a.safetensors", "./models//a.safetensors"))
    assert list(fingerprints(one.findings)) == list(fingerprints(other.findings))


def test_a_baseline_knows_what_was_found(tree: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "baseline.json")
    before = list(audit([str(tree)]))
    baseline.write(path, before)
    known = baseline.load(path)
    after = list(audit([str(tree)], Options(baseline=known)))
    assert [finding.code for result in after for finding in result.findings] == []
    assert sum(result.known for result in after) == sum(len(result.findings) for result in before) == 2
    shutil.copy(CUT, tree / "models" / "new.safetensors")
    new = [(os.path.basename(r.path), f.code) for r in audit([str(tree)], Options(baseline=known)) for f in r.findings]
    assert new == [("new.safetensors", "I103")]


def test_a_baseline_never_knows_what_was_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(with_member("mlp/x.dat", bytes(range(256))))
    baseline.write(str(tmp_path / "b.json"), list(audit([str(path)])))
    (result,) = audit([str(path)], Options(baseline=baseline.load(str(tmp_path / "b.json"))))
    assert [finding.code for finding in result.findings] == ["I102"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no baseline"),
        ("[]", "is no baseline"),
        ('{"version": 3, "findings": {}, "globals": {}}', "is a baseline of version 3, not 2"),
        ('{"version": 1, "findings": 3, "globals": {}}', "is no baseline"),
        ("[" * 100_000, "is no baseline"),
    ],
)
def test_what_is_no_baseline(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(CkptError, match=says):
        baseline.load(str(path))


# --- cache


def test_the_cache_gives_the_same_results(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    options = Options(cache=str(tmp_path_factory.mktemp("kept")))
    plain = [result.data() for result in audit([str(tree)])]
    assert [result.data() for result in audit([str(tree)], options)] == plain
    cached = [json.loads(json.dumps(result.data())) for result in audit([str(tree)], options)]
    assert cached == json.loads(json.dumps(plain))


def test_what_is_cached_depends_on_content_options_and_place(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(MLP)
    cache = Cache(str(tmp_path / "kept"))
    key = cache.key(str(path), True, Options())
    assert key == cache.key(str(path), True, Options(today=datetime.date(1999, 1, 1)))
    (tmp_path / "b.pt").write_bytes(MLP)
    others = [
        cache.key(str(path), False, Options()),
        cache.key(str(path), True, Options(values=False)),
        cache.key(str(path), True, Options(Policy(ignore=("I",)))),
        cache.key(str(path), True, Options(baseline=baseline.Baseline({}, {str(path): ("os.system",)}))),
        cache.key(str(tmp_path / "b.pt"), True, Options()),
    ]
    path.write_bytes(MLP[:-1] + b"x")
    others.append(cache.key(str(path), True, Options()))
    assert len({key, *others}) == 7
    assert None not in others
    assert cache.key(str(tmp_path), True, Options()) is None


def test_what_is_cached_depends_on_what_is_read_beside_weights(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "kept"))
    keys = {}
    for name in ("model.pt", "other.pt"):
        (tmp_path / name).write_bytes(MLP)
        keys[name] = [cache.key(str(tmp_path / name), True, Options())]
    for text in ("{}", '{"chat_template": "{{ x }}"}'):
        (tmp_path / "tokenizer_config.json").write_text(text)
        for name, found in keys.items():
            found.append(cache.key(str(tmp_path / name), True, Options()))
    assert len(set(keys["model.pt"])) == 3
    assert len(set(keys["other.pt"])) == 1


def test_a_kept_result_is_used_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(MLP)
    cache = Cache(str(tmp_path / "kept"))
    options = Options(cache=cache.folder)
    key = cache.key(str(path), True, options)
    assert key is not None
    cache.put(key, Audited(str(path), "torch_zip", "kept"))
    assert [result.title for result in audit([str(path)], options)] == ["kept"]
    (kept,) = (tmp_path / "kept").rglob("*.json")
    kept.write_text('{"path": 3')
    assert [result.title for result in audit([str(path)], options)] == ["PyTorch zip archive (torch.save)"]
    assert json.loads(kept.read_text())["format"] == "torch_zip"


def test_failures_are_not_kept(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "kept"))
    cache.put("0" * 64, Audited("a.pt", failure="reading failed"))
    assert cache.get("0" * 64, "a.pt") is None


def test_sums(tree: Path) -> None:
    sums = summed(list(audit([str(tree), "nowhere.pt"])))
    assert sums == {
        "files": 6, "skipped": 3, "failed": 1, "errors": 2, "warnings": 0, "notes": 0, "waived": 0, "known": 0,
    }  # fmt: skip


def test_the_package_has_the_public_names() -> None:
    import ckpt_tools.audit as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    assert package.audit is audit
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018
