"""A baseline knows a danger by what it is made with, and a checkpoint that was trained on by what stays the same."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.audit import baseline
from ckpt_tools.audit.dangers import judge
from ckpt_tools.audit.engine import audit
from ckpt_tools.audit.payload import of_dangers
from ckpt_tools.audit.policy import Options, Policy
from ckpt_tools.audit.reports import for_machines
from ckpt_tools.audit.results import Audited
from ckpt_tools.errors import CorruptFile
from ckpt_tools.formats.unpickled import pickle_of
from ckpt_tools.pickles.machine import BLOB_BYTES, evaluate
from ckpt_tools.render import render
from ckpt_tools.sources import MemorySource
from tests.audit.archives import contents, packed
from tests.audit.cases_security import ATTACKS
from tests.hostile.assembler import COMMAND, Attack, Raw, call, checkpoint, name, new, push, stream

ROOT = Path(__file__).resolve().parents[2]


def payload(data: bytes) -> str:
    """The payload of a pickle, which has to be all of *data*."""
    evaluation = evaluate(data)
    assert evaluation.end == len(data)
    return judge(pickle_of(evaluation, "pickle", MemorySource(data, "model.pkl"))).payload


def news(before: bytes, after: bytes, path: Path) -> list[str]:
    """The rules whose findings about *after* a baseline of *before* does not know."""
    options = Options(Policy(select=("S", "I102")), values=False)
    path.write_bytes(before)
    known = path.parent / "known"
    baseline.write(str(known), list(audit([str(path)], options)))
    path.write_bytes(after)
    options = Options(options.policy, values=False, baseline=baseline.load(str(known)))
    return [finding.code for result in audit([str(path)], options) for finding in result.findings]


# --- attacks

_UNREAD = frozenset({"7z", "LZ4", "Zstandard", "RAR", "an encrypted", "a member shorter"})
"""Attacks in which nothing is seen that would do harm, so that only rules of integrity tell of them."""
HARMFUL = [
    pytest.param(attack, id=title)
    for title, attack in ATTACKS.items()
    if COMMAND.encode() in attack.data and not attack.files and not any(part in title for part in _UNREAD)
]


@pytest.mark.parametrize("attack", HARMFUL)
def test_another_command_is_another_danger(attack: Attack, tmp_path: Path) -> None:
    path = tmp_path / f"model{attack.suffix}"
    assert set(news(attack.data, attack.data, path)) <= {"I102"}  # which no baseline knows
    found = news(attack.data, attack.data.replace(COMMAND.encode(), b"fals"), path)
    assert any(code in found for code in (attack.code, "S101", "S103", "S115", "I102")), found


WITH = Raw(b"\x94")  # MEMOIZE, which a pickler writes behind what it may refer to again


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (call("os:kill", 1, 9), call("os:kill", 2, 9)),
        (call("os:kill", 1, 9), call("os:kill", 1.0, 9)),
        (call("os:system", b"true"), call("os:system", b"fals")),
        (call("os:system", b"a" * BLOB_BYTES), call("os:system", b"b" * BLOB_BYTES)),
        (call("os:system", "a" * 70_000), call("os:system", "b" * 70_000)),
        (call("builtins:exec", call("builtins:bytes", [1, 2])), call("builtins:exec", call("builtins:bytes", [1, 3]))),
        (call("functools:partial", name("os:system"), "a"), call("functools:partial", name("os:system"), "b")),
        (new("subprocess:Popen", state={"a": 1}), new("subprocess:Popen", state={"a": 2})),
        ([call("os:system", "a"), call("os:remove", "b")], [call("os:system", "b"), call("os:remove", "a")]),
        (call("os:system", new("m:Text", state={"a": 1})), call("os:system", new("m:Text", state={"a": 2}))),
        (call("os:system", {"a": 1}), call("os:system", {"a": 2})),
        ([call("m:a", 1), call("os:a", 1), call("os:b", 1)], [call("m:a", 1), call("os:a", 1), call("os:a", 1)]),
        (
            [call("os:a", 1), call("os:b", 2), call("os:a", 3)],
            [call("os:a", 1), call("os:b", 2), call("os:b", 3)],
        ),
        (call("os:system", "a"), [call("os:system", "a"), call("os:system", "a")]),
        # an item of what is given, set before the call or behind it
        (
            Raw(push(name("os:system")) + b"]" + WITH.code + push("a") + b"a" + b"\x85R"),
            Raw(push(name("os:system")) + b"]" + WITH.code + b"\x85R" + b"h\x00" + push("a") + b"a" + b"0"),
        ),
        # the state of what is given, and one that takes its place behind the call
        (
            Raw(push(name("os:system")) + new("m:T", state={"a": 1}).code + WITH.code + b"\x85R"),
            Raw(
                push(name("os:system"))
                + (new("m:T", state={"a": 3}).code + WITH.code + b"\x85R")
                + (b"h\x00" + push({"a": 1}) + b"b0")
            ),
        ),
        (Raw(push(name("os:environ")) + push({"a": 1}) + b"b"), Raw(push(name("os:environ")) + push({"a": 2}) + b"b")),
    ],
)  # fmt: skip
def test_whatever_a_dangerous_call_is_given_counts(one: Raw, other: Raw) -> None:
    assert payload(stream(one)) == payload(stream(one)) != payload(stream(other))


def test_a_pickle_that_breaks_off_counts_whole() -> None:
    def broken(command: str) -> str:
        data = b"\x80\x04" + call("os:system", command).code + b"(\xff"
        path = MemorySource(data, "m.pkl")
        with pytest.raises(CorruptFile) as caught:
            evaluate(data)
        return judge(pickle_of(caught.value.partial, "pickle", path)).payload  # type: ignore[attr-defined]

    assert broken("true") == broken("true") != broken("fals")


# --- training


def test_what_training_changes_does_not_count() -> None:
    def trained(epoch: int, loss: float, noise: bytes) -> bytes:
        return stream(
            {
                "danger": call("os:system", "true"),
                "epoch": epoch,
                "loss": loss,
                "state": new("mypackage:Meter", state={"sum": loss, "raw": noise, "long": noise * BLOB_BYTES}),
            }
        )

    first = trained(1, 0.5, b"abcd")
    assert payload(first) == payload(trained(70_000, 1e-9, b"efgh")) != ""


def test_a_real_pickler_writes_numbers_of_any_size() -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    for protocol in range(6):
        found = {
            payload(pickle.dumps({"epoch": epoch, "loss": epoch / 7, "x": Harm()}, protocol))
            for epoch in (1, 300, 70_000, 1 << 40, -3)
        }
        assert len(found) == 1


def test_a_checkpoint_that_needs_classes_stays_known(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")

    def trained(seed: int) -> bytes:
        rng = numpy.random.default_rng(seed)
        harmless = new("mypackage:Net", state={"_modules": {}, "_parameters": {}, "step": seed, "loss": seed / 3})
        restored = call("mypackage.tools:restore", "net", seed, [seed / 7], rng.bytes(50), {"n": seed})
        data = stream({"net": harmless, "made": restored, "epoch": seed})
        buffer = io.BytesIO()
        torch.save({"w": torch.randn(4, generator=torch.manual_seed(seed)), "a": rng.random(3), "epoch": seed}, buffer)
        return packed([*contents(buffer.getvalue()), ("archive/extra.pkl", data)])

    assert trained(1) != trained(99_999)
    path = tmp_path / "model.pt"
    assert news(trained(1), trained(1), path) == []
    (tmp_path / "model.pt").write_bytes(trained(1))
    found = {finding.code for result in audit([str(path)], Options(values=False)) for finding in result.findings}
    assert {"S111", "S112", "S113"} <= found
    assert news(trained(1), trained(99_999), path) == []


def test_a_text_for_an_unknown_function_counts() -> None:
    one, same, other = (
        payload(stream(call("mypackage.tools:run", *given)))
        for given in (("a", 1, b"x"), ("a", 2, b"y"), ("b", 1, b"x"))
    )
    assert one == same != other
    assert payload(stream(call("collections:OrderedDict"))) == payload(stream(new("mypackage:Net"))) == ""


def test_the_code_of_a_function_counts_and_not_where_it_stood() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")

    def kept(source: str, file: str = "a.py") -> str:
        space: dict[str, Callable[..., object]] = {"__name__": "__main__"}
        exec(compile(source, file, "exec"), space)
        return payload(cloudpickle.dumps({"schedule": space["f"]}))

    plain = kept("def f(x): return x * 0.5")
    assert plain == kept("\n\ndef f(x): return x * 0.5", "b.py") != ""
    assert plain != kept("def f(x): return x * 0.25")
    assert plain != kept("def f(y): return y * 0.5")
    assert kept("def f(x):\n  def g(): return 1\n  return g") != kept("def f(x):\n  def g(): return 2\n  return g")


def test_sets_have_no_order_of_their_own() -> None:
    data = stream(call("os:system", Raw(b"\x8f(" + b"".join(map(push, ["b", "a", 3, b"c", ("d", 1)])) + b"\x90")))
    code = f"from tests.audit.test_payload import payload; print(payload({data!r}))"
    found: set[bytes] = set()
    for seed in ("1", "2", "3"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


@pytest.mark.parametrize(
    "shared",
    [
        "a" * 1000,
        "a" * (1 << 17),
        b"a" * 1000,
        b"a" * (1 << 17),
        ["a" * 50] * 100,
        Raw(b"\x8b\xe8\x03\0\0" + b"a" * 1000),
    ],
)
def test_what_many_calls_share_is_told_once(shared: Any) -> None:
    again = name("os:system").code + b"h\x00\x85R0"
    data = b"\x80\x04" + push(shared) + b"\x94" + 2000 * again + b"."
    evaluation = evaluate(data)
    assert len(evaluation.calls) == 2000
    pieces = list(of_dangers(evaluation, MemorySource(data, "m.pkl"), evaluation.calls))
    assert sum(map(len, pieces)) < 10 * len(data)


# --- other programs in files


def template(command: str) -> bytes:
    text = json.dumps({"chat_template": f"{{{{ ''.__class__('{command}') }}}}"}).encode()
    header = json.dumps({"__metadata__": json.loads(text)}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("code", "suffix", "make"),
    [
        ("S125", ".pt", lambda text: checkpoint(stream(None), ("archive/net.py", text.encode()))),
        ("S126", ".safetensors", template),
        (
            "S127",
            ".keras",
            lambda text: packed(
                [
                    ("metadata.json", b"{}"),
                    ("config.json", json.dumps({"class_name": "Lambda", "config": {"function": text}}).encode()),
                ]
            ),
        ),
    ],
)
def test_another_program_is_another_danger(
    code: str, suffix: str, make: Callable[[str], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    assert news(make("true"), make("true"), path) == []
    assert code in news(make("true"), make("fals"), path)


# --- files of earlier versions, and other reports


def test_a_baseline_of_an_earlier_version_is_read(run: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(stream(call("os:system", "true")))
    (tmp_path / "cut.safetensors").write_bytes((ROOT / "fixtures" / "refused" / "cut.safetensors").read_bytes())
    known = tmp_path / "known.json"
    files = json.loads(run("audit", ".", "--format", "json", cwd=tmp_path).stdout)["files"]
    prints = {finding["code"]: finding["fingerprint"] for file in files for finding in file["findings"]}
    without = hashlib.sha256(b"S101\0bad.pkl\0pickle\0\0os.system\0" + b"0").hexdigest()[:32]
    findings = {prints["I103"]: "I103 cut.safetensors", without: "S101 bad.pkl: pickle, byte 15"}
    known.write_text(json.dumps({"version": 1, "findings": findings, "globals": {"bad.pkl": ["os.system"]}}))
    done = run("audit", ".", "--baseline", "known.json", "--format", "json", cwd=tmp_path)
    assert done.exit_code == 1
    assert "known.json: written by an earlier version" in done.stderr
    files = json.loads(done.stdout)["files"]
    assert [finding["code"] for file in files for finding in file["findings"]] == ["S101"]
    assert run("audit", ".", "--baseline", "known.json", "--write-baseline", cwd=tmp_path).exit_code == 0
    assert json.loads(known.read_text())["version"] == 2
    done = run("audit", ".", "--baseline", "known.json", cwd=tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")


def test_reports_have_the_fingerprint_of_the_baseline(tmp_path: Path) -> None:
    def told(command: str) -> list[list[str]]:
        path = tmp_path / "bad.pkl"
        path.write_bytes(stream(call("os:system", command)))
        results = list(audit([str(path)], Options(Policy(select=("S101",)))))
        baseline.write(str(tmp_path / "b.json"), results)
        found = [list(json.loads((tmp_path / "b.json").read_text())["findings"])]
        reports = for_machines(results)
        (log,) = json.loads(render(reports, "sarif", command="audit"))["runs"]
        found.append([result["partialFingerprints"]["ckptFinding/v2"] for result in log["results"]])
        found.append([entry["fingerprint"] for entry in json.loads(render(reports, "gitlab", command="audit"))])
        return found

    one, other = told("true"), told("fals")
    assert one[0] == one[1] == one[2] != other[0]
    assert other[0] == other[1] == other[2]


def test_results_with_a_payload_survive_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(stream(call("os:system", "true")))
    options = Options(cache=str(tmp_path / "cache"))
    first, again = ([result.data() for result in audit([str(path)], options)] for _ in range(2))
    assert first == again
    assert isinstance(Audited.of(first[0], str(path)).findings[0].payload, str)
