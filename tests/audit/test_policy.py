"""The policy file: what is read from it, where it is found, and that nothing misspelt passes."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from ckpt_tools.audit.engine import check_codes
from ckpt_tools.audit.policy import Policy, Requirement, Waiver, find, load, matches, version
from ckpt_tools.audit.rules import BY_CODE
from ckpt_tools.errors import CkptError
from tests.audit.cases import asked

FULL = """
[audit]
select = ["S", "I"]
ignore = ["I206"]
fail-on = "warning"
base = "base.pt"
torch = "2.4"
severity = { I202 = "error", I = "note" }
per-path-ignores = { "old/*.pt" = ["I3", "P"] }

[[audit.waivers]]
code = "I103"
path = "mirror/*"
member = "data/*"
reason = "they mend it"
expires = 2026-08-31

[[audit.waivers]]
code = "S"
reason = "ours"
expires = "2026-01-31"

[[audit.require]]
formats = ["safetensors", "torch_zip"]
kinds = ["state_dict"]
globals = []
dtypes = ["float32", "half"]
max-size = "1.5 GB"
min-parameters = 10
max-parameters = 1e6
keys = ["fc.*"]
shapes = { "fc.weight" = [10, -1] }
metadata = ["revision"]
frozen = ["backbone.*"]
licenses = ["mit"]

[[audit.require]]
paths = ["a/*.pt"]
max-size = 100
metadata = { revision = "v?" }
sha256 = "ECC0D881F9BFCD2A2A468208FD94AF302ACAB4DA6D4C9C8942A8E9BA68BA1FB1"
"""


def written(folder: Path, text: str, name: str = "ckpt-tools.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_all_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, FULL)
    policy = load(path)
    assert policy.source == path
    assert (policy.select, policy.ignore, policy.fail_on) == (("S", "I"), ("I206",), "warning")
    assert (policy.base, policy.torch) == (str(tmp_path / "base.pt"), "2.4")
    assert policy.severity == {"I202": "error", "I": "note"}
    assert policy.per_path_ignores == {"old/*.pt": ("I3", "P")}
    first, second = policy.waivers
    assert (first.code, first.path, first.member, first.reason) == ("I103", "mirror/*", "data/*", "they mend it")
    assert first.expires == datetime.date(2026, 8, 31)
    assert second.expires == datetime.date(2026, 1, 31)
    one, other = policy.requirements
    assert (one.paths, one.formats, one.kinds) == (("*",), ("safetensors", "torch_zip"), ("state_dict",))
    assert (one.globals, one.dtypes, one.max_size) == ((), ("float32", "float16"), 1_500_000_000)
    assert (one.min_parameters, one.max_parameters, one.keys) == (10, 1_000_000, ("fc.*",))
    assert (one.shapes, one.metadata) == ({"fc.weight": (10, -1)}, {"revision": "*"})
    assert (one.frozen, one.licenses) == (("backbone.*",), ("mit",))
    assert (other.paths, other.globals, other.max_size, other.metadata) == (("a/*.pt",), None, 100, {"revision": "v?"})
    assert other.sha256 == "ecc0d881f9bfcd2a2a468208fd94af302acab4da6d4c9c8942a8e9ba68ba1fb1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('selct = ["S"]', "unknown key selct in [audit]; did you mean select?"),
        ('select = "S"', "audit.select is no list of strings: 'S'"),
        ("select = [1]", "audit.select is no string: 1"),
        ('fail-on = "fatal"', "audit.fail-on is 'fatal', not one of error, warning, note"),
        ("severity = 3", "audit.severity is no table"),
        ('severity = { S = "bad" }', "audit.severity.S is 'bad'"),
        ('waivers = [{ code = "S" }]', "a waiver in audit.waivers has no reason"),
        ('waivers = [{ reason = "x" }]', "a waiver in audit.waivers has no code"),
        ('waivers = { code = "S" }', "audit.waivers is no list of tables"),
        ('waivers = [{ code = "S", reason = "x", expires = "soon" }]', "audit.waivers.expires is no date"),
        ('waivers = [{ code = "S", reason = "x", until = 1 }]', "unknown key until in [audit.waivers]"),
        ('require = { format = ["gguf"] }', "unknown key format in [audit.require]; did you mean formats?"),
        (
            'require = { formats = ["safetensor"] }',
            "audit.require.formats has 'safetensor', which there is not; did you mean safetensors?",
        ),
        ('require = { kinds = ["model", "models"] }', "audit.require.kinds has 'models'"),
        ('require = { dtypes = ["fp16"] }', "audit.require.dtypes has 'fp16', which there is not"),
        ('require = { max-size = "2 gigs" }', 'audit.require.max-size is no size such as "2 GB"'),
        ("require = { max-size = -1 }", "audit.require.max-size is no whole number: -1"),
        ("require = { min-parameters = 1.5 }", "audit.require.min-parameters is no whole number: 1.5"),
        ("require = { max-parameters = inf }", "audit.require.max-parameters is no whole number: inf"),
        ('require = { shapes = { a = "3" } }', "audit.require.shapes.a is no list of sizes"),
        ("require = { shapes = { a = [-2] } }", "audit.require.shapes.a is no list of sizes"),
        ('require = { sha256 = "abc" }', "audit.require.sha256 is no SHA-256"),
        ("require = [3]", "[audit.require] is no table"),
        ('require = { kinds = ["weights"] }', "there are archive, model, object, optimizer, program, state_dict, "),
        (
            "require = { min-parameters = 3, max-parameters = 2 }",
            "a min-parameters of 3, above its max-parameters of 2",
        ),
    ],
)
def test_what_is_not_understood_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, f"[audit]\n{text}\n")
    with pytest.raises(CkptError) as caught:
        load(path)
    assert says in caught.value.problem
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("ckpt-tools.toml", "[adit]\n", "unknown table adit; did you mean audit?"),
        ("ckpt-tools.toml", "[audit\n", "is no valid TOML"),
        ("pyproject.toml", "[tool.other]\n", "has no settings for audit"),
        ("pyproject.toml", "tool = 3\n", "has no settings for audit"),
    ],
)
def test_files_that_are_no_policy(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(CkptError, match=says):
        load(written(tmp_path, text, name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="cannot be read: No such file"):
        load(str(tmp_path / "none.toml"))


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find(str(below)) is None
    top = written(tmp_path, "[tool.ckpt-tools.audit]\n", "pyproject.toml")
    assert find(str(below)) == top
    written(below, "[project]\n", "pyproject.toml")  # has no settings for audit
    assert find(str(below)) == top
    near = written(tmp_path / "a", "[audit]\n")
    assert find(str(below)) == near
    assert load(top).select == ()


@pytest.mark.parametrize(
    ("select", "ignore", "counted"),
    [
        ((), (), {"S101", "S201", "I201"}),
        (("S",), (), {"S101", "S201"}),
        ((), ("S",), {"I201"}),
        (("S1",), ("S",), {"S101"}),
        (("S",), ("S1",), {"S201"}),
        (("S101",), ("S101",), set()),
        ((), ("S1",), {"S201", "I201"}),
    ],
)
def test_the_longer_prefix_counts(select: tuple[str, ...], ignore: tuple[str, ...], counted: set[str]) -> None:
    policy = Policy(select=select, ignore=ignore)
    assert {code for code in ("S101", "S201", "I201") if policy.counts(code, "model.pt")} == counted


@pytest.mark.parametrize(
    ("ignore", "counted"), [((), True), (("I102",), True), (("I1",), False), (("I103",), False), (("I",), False)]
)
def test_what_could_not_be_examined_is_told_whatever_is_selected(ignore: tuple[str, ...], counted: bool) -> None:
    assert Policy(select=("S",), ignore=ignore).counts("I103", "model.pt") is counted


def test_rules_are_ignored_by_path() -> None:
    policy = Policy(per_path_ignores={"old/*.pt": ("I3",), "*.bin": ()})
    assert not policy.counts("I301", "models/old/a.pt")
    assert policy.counts("I301", "models/new/a.pt")
    assert policy.counts("I201", "models/old/a.pt")
    assert policy.counts("I301", "a.bin")


def test_the_longest_prefix_gives_the_severity() -> None:
    policy = Policy(severity={"I": "note", "I2": "warning"})
    assert [policy.severity_of(code, "error") for code in ("I101", "I201", "S101")] == ["note", "warning", "error"]


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("model.pt", "*.pt", True),
        ("a/b/model.pt", "*.pt", True),
        ("a/b/model.pt", "b/*", True),
        ("a/b/model.pt", "/b/*", False),
        ("ab/model.pt", "b/*", False),
        ("model.PT", "*.pt", False),
        ("", "*", True),
    ],
)
def test_paths_match_by_their_end(path: str, glob: str, expected: bool) -> None:
    assert matches(path, glob) is expected


def test_a_waiver_holds_on_its_last_day() -> None:
    waiver = Waiver("S", "x", expires=datetime.date(2026, 7, 1))
    assert not waiver.expired(datetime.date(2026, 7, 1))
    assert waiver.expired(datetime.date(2026, 7, 2))
    assert not Waiver("S", "x").expired(datetime.date(9999, 1, 1))


@pytest.mark.parametrize("code", ["I999", "X", "", "i101", "I1011"])
def test_codes_that_there_are_not_are_refused(code: str) -> None:
    for policy in (
        Policy(select=(code,)),
        Policy(ignore=(code,)),
        Policy(severity={code: "note"}),
        Policy(per_path_ignores={"*": (code,)}),
        Policy(waivers=(Waiver(code, "x"),)),
    ):
        with pytest.raises(CkptError, match="which is no rule"):
            check_codes(policy)
    check_codes(Policy(select=("S", "I1", "I101"), requirements=(Requirement(),)))


@pytest.mark.parametrize("base", ["/models/base.pt", "https://example.com/base.pt"])
def test_a_base_may_stand_anywhere(tmp_path: Path, base: str) -> None:
    assert load(written(tmp_path, f'[audit]\nbase = "{base}"\n')).base == base


@pytest.mark.parametrize(("text", "nbytes"), [('"1.5 GB"', 1_500_000_000), ('"2GB"', 2 * 10**9), ('"3"', 3), ("7", 7)])
def test_sizes(tmp_path: Path, text: str, nbytes: int) -> None:
    (required,) = load(written(tmp_path, f"[audit]\nrequire = {{ max-size = {text} }}\n")).requirements
    assert required.max_size == nbytes


@pytest.mark.parametrize(
    ("text", "expected"), [("2.4", (2, 4)), ("2.14.1", (2, 14)), ("2.5.0a0+cu121", (2, 5)), ("2", None), ("2.x", None)]
)
def test_versions(text: str, expected: tuple[int, int] | None) -> None:
    assert version(text) == expected


@pytest.mark.parametrize(
    ("file", "required", "code", "says"),
    [
        ("zip/mlp.pt", {"shapes": {"fc9.bias": (1,)}}, "P208", "no tensor is called fc9.bias"),
        ("model/frozen_backbone.pt", {"frozen": ("backbone.*",)}, "P210", "no parameter is called backbone.*"),
        ("zip/tensor.pt", {"min_parameters": 1}, "P206", "its parameters cannot be counted: there is no model in it"),
        ("zip/tensor.pt", {"frozen": ("*",)}, "P210", "nobody can tell what is frozen: there is no model in it"),
        ("zip/tensor.pt", {"digest": "0" * 64}, "P212", "the weights' digest is not to be had (there is no model in"),
    ],
)
def test_what_is_not_there_is_not_as_asked(
    tmp_path: Path, file: str, required: dict[str, object], code: str, says: str
) -> None:
    (found,) = BY_CODE[code].findings(asked(file, **required)(tmp_path))
    assert says in found.message


def test_parameters_that_are_not_frozen_for_one_reason_are_one_finding(tmp_path: Path) -> None:
    (found,) = BY_CODE["P210"].findings(asked("model/cnn.pt", frozen=("*",))(tmp_path))
    told = "it is trainable: requires_grad=True in the file (5 parameters: features.0.weight, features.1.weight, "
    assert found.message.startswith(told)
    assert len(found.evidence["parameters"]) == 5
