"""``ckpt diff`` as it is typed: exit codes, formats, expectations, tolerances, key maps."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs" / "schema" / "diff.schema.json").read_text())


@pytest.fixture
def transfer(fixtures_dir):
    return {path.stem: path for path in (fixtures_dir / "transfer").iterdir()}


@pytest.fixture
def diff(run):
    """The exit code, and the data of ``ckpt diff --format json``."""

    def diff(*args):
        done = run("diff", *args, "--format", "json")
        assert done.stderr == "", done.stderr
        document = json.loads(done.stdout)
        jsonschema.validate(document, SCHEMA)
        assert (document["version"], document["command"], len(document["files"])) == (1, "diff", 1)
        return done.exit_code, document["files"][0]

    return diff


def test_the_first_line_is_the_verdict(run, transfer):
    done = run("diff", transfer["base"], transfer["tuned"])
    assert (done.exit_code, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0] == (
        f"{transfer['base']} → {transfer['tuned']}: backbone identical (3 tensors), `head` replaced (4→2 classes), "
        "3 BatchNorm buffers moved in 1 layer whose weights stayed"
    )
    done = run("diff", transfer["base"], transfer["base"])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].endswith("identical (8 tensors)")
    assert "Tensors that differ" not in done.stdout


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["{base}", "nowhere.pt"], "No such file"),
        (["{base}"], "Usage:"),
        (["{base}", "{page}"], "HTML"),
        (["{base}", "{tuned}", "--keys", "nothing.*"], "no tensor's name matches"),
        (["{base}", "{tuned}", "--expect-frozen", "backbone.*"], "no tensor's name matches the expectation backbone.*"),
        (["{base}", "{tuned}", "--expect-changed", "*.running_mean"], "only buffers match"),
        (["{base}", "{tuned}", "--ignore", "everything"], "Invalid value"),
        (["{base}", "{tuned}", "--select", "nothing"], "there is no state_dict at 'nothing'"),
        (["{base}", "{tuned}", "--rtol", "-1"], "Invalid value"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2(run, fixtures_dir, transfer, args, told):
    paths = {**transfer, "page": fixtures_dir / "refused" / "page.pth"}
    done = run("diff", *(arg.format(**paths) for arg in args))
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_one_model_in_four_formats_is_identical(diff, tmp_path, torch):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "n.num_batches_tracked": torch.tensor(7)}
    torch.save(model, tmp_path / "zip.pt")
    torch.save(model, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(model, tmp_path / "one.safetensors")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    weight_map = {}
    for index, name in enumerate(model):
        shard = f"model-{index + 1:05}-of-00003.safetensors"
        save_file({name: model[name]}, sharded / shard)
        weight_map[name] = shard
    (sharded / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 68}, "weight_map": weight_map})
    )
    files = [tmp_path / name for name in ("zip.pt", "legacy.pt", "one.safetensors", "sharded")]
    for a in files:
        for b in files:
            code, data = diff(a, b)
            assert (code, data["different"], data["verdict"]) == (0, False, "identical (3 tensors)"), (a, b)


def test_numbers_for_machines(diff, tmp_path, torch):
    torch.save({"w": torch.tensor([[3.0, 0.0], [4.0, float("nan")]])}, tmp_path / "a.pt")
    torch.save({"w": torch.tensor([[3.0, -1.0], [4.5, 1.0]])}, tmp_path / "b.pt")
    code, data = diff(tmp_path / "a.pt", tmp_path / "b.pt")
    (tensor,) = data["tensors"]
    assert (code, tensor["change"], tensor["equal_elements"]) == (1, "value", 1)
    assert tensor["distance"] == pytest.approx(1.25**0.5)
    assert tensor["relative"] == pytest.approx(1.25**0.5 / 5)
    assert (tensor["max_abs"], tensor["max_index"]) == (1.0, [0, 1])
    assert (tensor["nan"], tensor["inf"], tensor["sign_flips"]) == ([1, 0], [0, 0], 0)
    assert data["relative_change"] == pytest.approx(1.25**0.5 / 5)


def test_brief_says_only_whether(run, transfer):
    done = run("diff", "--brief", transfer["base"], transfer["checkpoint"])
    assert done.exit_code == 1
    (line,) = done.stdout.splitlines()
    assert line.endswith("2 of 5 weight tensors changed in `head`, optimizer only in B, `epoch` and `loss` only in B")
    assert run("diff", "--brief", transfer["base"], transfer["base"]).exit_code == 0


def test_brief_heeds_tolerances(run, tmp_path, torch):
    torch.save({"w": torch.tensor([1.0, 2.0])}, tmp_path / "a.pt")
    torch.save({"w": torch.tensor([1.0, 2.5])}, tmp_path / "b.pt")
    (tmp_path / "policy.toml").write_text('[diff.tolerances]\n"w" = { rtol = 0.25 }\n')
    pair = ["diff", tmp_path / "a.pt", tmp_path / "b.pt"]
    for tolerance, code in (
        (["--atol", "0.5"], 0),
        (["--atol", "0.4"], 1),
        (["--rtol", "0.25"], 0),
        (["--policy", tmp_path / "policy.toml"], 0),
        ([], 1),
    ):
        assert [run(*pair, *tolerance, *brief).exit_code for brief in ([], ["--brief"])] == [code, code], tolerance


def test_brief_knows_a_cast_from_training(diff, tmp_path, torch):
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, 0.1)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save(model.half().requires_grad_(False), tmp_path / "b.pt")
    code, data = diff("--brief", "--transfer", tmp_path / "a.pt", tmp_path / "b.pt")
    assert (code, data["transfer"]["contradictions"]) == (1, [])


def test_categories_can_be_switched_off(run, transfer):
    args = [
        "diff",
        "--brief",
        transfer["base"],
        transfer["checkpoint"],
        "--ignore",
        "optimizer",
        "--ignore",
        "metadata",
    ]
    assert run(*args).exit_code == 1
    done = run(*args, "--ignore", "weights")
    assert (done.exit_code, done.stdout.splitlines()[0].rpartition(": ")[2]) == (
        0,
        "metadata, optimizer, weights",
    )
    assert ": identical (3 tensors); left out: " in done.stdout.splitlines()[0]


def test_what_could_not_be_compared_is_trouble(run, fixtures_dir, tmp_path, torch):
    torch.save({"v": torch.ones(1), "w": torch.empty(2, device="meta")}, tmp_path / "a.pt")
    torch.save({"v": torch.ones(1), "w": torch.ones(2)}, tmp_path / "b.pt")
    done = run("diff", "--brief", tmp_path / "a.pt", tmp_path / "b.pt")
    assert done.exit_code == 2
    assert "1 tensor could not be compared" in done.stdout
    assert "w could not be compared: w has no bytes of its own" in done.stderr
    assert run("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--exclude", "w").exit_code == 0


def test_a_state_dict_that_only_one_file_has_there_has_a_remedy(run, tmp_path, torch):
    torch.save({"netG": {"w": torch.ones(2)}, "netD": {"w": torch.ones(2)}}, tmp_path / "gan.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "one.pt")
    done = run("diff", "gan.pt", "one.pt", "--select", "netG", cwd=tmp_path)
    assert (done.exit_code, done.stderr) == (
        2,
        "ckpt: one.pt: there is no state_dict at 'netG'; there are: the root. "
        "--select-b names that of B, '' the one at its root\n",
    )
    assert run("diff", "gan.pt", "one.pt", "--select", "netG", "--select-b", "", cwd=tmp_path).exit_code == 0
    done = run("diff", "-", "-", stdin=(tmp_path / "one.pt").read_bytes())
    assert (done.exit_code, "standard input is one checkpoint" in done.stderr) == (2, True)


def test_values_that_were_not_compared_are_trouble_unless_other_things_differ(run, tmp_path, torch):
    steps = list(range(120_000))
    torch.save({"model": {"w": torch.ones(2)}, "steps": [*steps, 1]}, tmp_path / "a.pt")
    torch.save({"model": {"w": torch.ones(2)}, "steps": [*steps, 2]}, tmp_path / "b.pt")
    torch.save({"model": {"w": torch.zeros(2)}, "steps": [*steps, 2]}, tmp_path / "c.pt")
    done = run("diff", "--brief", tmp_path / "a.pt", tmp_path / "b.pt")
    assert done.exit_code == 2
    assert re.fullmatch(r"ckpt: steps\[\d+\] could not be compared: more values than are compared\n", done.stderr)
    assert run("diff", "--brief", tmp_path / "a.pt", tmp_path / "b.pt", "--ignore", "metadata").exit_code == 0
    assert run("diff", "--brief", tmp_path / "a.pt", tmp_path / "b.pt", "--expect-frozen", "*").exit_code == 0
    assert run("diff", "--brief", tmp_path / "a.pt", tmp_path / "c.pt").exit_code == 1


# --- expectations


def test_expectations_decide_the_exit_code(run, diff, transfer):
    base = transfer["base"]
    frozen = ["--expect-frozen", "features.*", "--expect-changed", "head.*"]
    code, data = diff(base, transfer["checkpoint"], *frozen)
    assert (code, data["broken_expectations"]) == (0, [])
    assert data["verdict"].startswith("as expected: ")
    code, data = diff(base, transfer["tuned"], *frozen)
    assert code == 1
    assert [broken["name"] for broken in data["broken_expectations"]] == [
        "features.1.running_mean",
        "features.1.running_var",
        "features.1.num_batches_tracked",
    ]
    assert diff(base, transfer["tuned"], *frozen, "--exclude", "features.1.*")[0] == 0
    code, data = diff(base, transfer["contradicted"], "--expect-frozen", "features.0.*")
    assert (code, [broken["name"] for broken in data["broken_expectations"]]) == (1, ["features.0.weight"])
    code, data = diff(base, base, "--expect-changed", "head.*")
    assert (code, len(data["broken_expectations"])) == (1, 2)
    done = run("diff", "--brief", base, transfer["tuned"], *frozen)
    assert "features.1.running_var" in done.stdout
    assert "3 tensors break expectations" in done.stdout.splitlines()[0]


def test_a_cast_is_no_training(run, diff, tmp_path, torch):
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, 0.1)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save(model.half(), tmp_path / "b.pt")
    pair = [tmp_path / "a.pt", tmp_path / "b.pt"]
    data = diff("--transfer", *pair)[1]["transfer"]
    assert data["layers"] == [{"layer": "", "outcome": "stayed, in another dtype"}]
    assert [(c["name"], c["what"].rpartition(", ")[2]) for c in data["contradictions"]] == [
        ("weight", "cast"),
        ("bias", "cast"),
    ]
    for brief in ([], ["--brief"]):
        done = run("diff", *pair, "--expect-changed", "weight", *brief)
        assert done.exit_code == 1
        assert "1 tensor breaks expectations: " in done.stdout.splitlines()[0]
        assert "a parameter of another dtype, with the values of A, cast" in done.stdout
        assert run("diff", *pair, "--expect-frozen", "*", *brief).exit_code == 1


def test_transfer_puts_contradictions_first(run, diff, transfer):
    code, data = diff("--transfer", transfer["base"], transfer["contradicted"])
    assert (code, [c["name"] for c in data["transfer"]["contradictions"]]) == (1, ["features.0.weight"])
    assert {x["layer"]: x["outcome"] for x in data["transfer"]["layers"]} == {
        "features.0": "trained",
        "features.1": "stayed",
        "head": "trained",
    }
    done = run("diff", "--transfer", transfer["base"], transfer["contradicted"])
    head = done.stdout.splitlines()[0].rpartition(".pt: ")[2]
    assert head.startswith("1 contradiction between what B says and its bytes (features.0.weight); 3 of 5 weight")
    code, data = diff("--transfer", transfer["base"], transfer["model"])
    assert data["transfer"]["contradictions"] == []
    assert data["transfer"]["head"] == {"old": "head", "new": "head", "outputs": [4, 2]}
    assert {x["layer"]: x["outcome"] for x in data["transfer"]["layers"]} == {
        "features.0": "stayed",
        "features.1": "drifted in buffers only",
        "head": "new",
    }


def test_a_head_that_never_trained_contradicts_its_flag(diff, transfer, tmp_path, torch):
    import torchvision

    model = torchvision.models.resnet18(num_classes=2)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save(model.requires_grad_(False), tmp_path / "frozen.pt")
    model.fc.requires_grad_()
    torch.save(model, tmp_path / "b.pt")
    data = diff("--transfer", tmp_path / "a.pt", tmp_path / "b.pt")[1]
    assert [c["name"] for c in data["transfer"]["contradictions"]] == ["fc.weight", "fc.bias"]
    assert diff("--transfer", tmp_path / "a.pt", tmp_path / "frozen.pt")[1]["transfer"]["contradictions"] == []


# --- tolerances


def test_a_policy_file_gives_tolerances_by_name(run, diff, transfer, tmp_path):
    pair = [transfer["base"], transfer["checkpoint"], "--ignore", "optimizer", "--ignore", "metadata"]
    policy = tmp_path / "policy.toml"
    policy.write_text('[diff.tolerances]\n"head.bias" = { atol = 1e-9 }\n"head.*" = { atol = 0.5 }\n')
    code, data = diff(*pair, "--policy", policy)
    changes = {t["name"]: t["change"] for t in data["tensors"] if t["name"].startswith("head")}
    assert (code, changes) == (1, {"head.weight": "within tolerance", "head.bias": "value"})
    policy.write_text('[tool.ckpt-tools.diff.tolerances]\n"head.*" = { atol = 0.5, rtol = 0 }\n')
    assert diff(*pair, "--policy", policy)[0] == 0
    assert diff(*pair, "--atol", "0.5")[0] == 0
    assert diff(*pair, "--atol", "1e-6")[0] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[diff.tolerances]\nx = { rtoll = 1 }", "unknown key 'rtoll'. Did you mean rtol?"),
        ("[diff.tolerances]\nx = 1", "is no table"),
        ("[diff.tolerances]\nx = { rtol = -1 }", "rtol is -1, not a number of 0 or more"),
        ("[diff.tolerances]\nx = { rtol = nan }", "rtol is nan"),
        ("[diff]\ntolerance = {}", "has no table [diff.tolerances]"),
        ("[diff.tolerances]\n[diff.tolerence]", "unknown key 'tolerence'"),
        ("[", "cannot be read as a policy"),
    ],
)
def test_a_wrong_policy_is_refused(run, transfer, tmp_path, text, told):
    (tmp_path / "policy.toml").write_text(text)
    done = run("diff", transfer["base"], transfer["base"], "--policy", tmp_path / "policy.toml")
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr


# --- key maps


def test_convert_takes_the_key_map(run, diff, tmp_path, torch):
    torch.manual_seed(0)
    old = {"module.norm.1.weight": torch.randn(3), "module.conv.2.weight": torch.randn(2, 3)}
    new = {"norm1.weight": old["module.norm.1.weight"], "conv2.weight": old["module.conv.2.weight"]}
    torch.save(old, tmp_path / "old.pt")
    torch.save(new, tmp_path / "new.pt")
    code, data = diff(tmp_path / "old.pt", tmp_path / "new.pt", "--write-key-map", tmp_path / "map.json")
    key_map = json.loads((tmp_path / "map.json").read_text())
    assert (code, key_map) == (1, dict(zip(old, new, strict=True)))
    assert data["key_map"] == key_map
    done = run("convert", tmp_path / "old.pt", tmp_path / "out.pt", "--key-map", tmp_path / "map.json")
    assert done.exit_code == 0, done.stderr
    assert diff(tmp_path / "out.pt", tmp_path / "new.pt")[0] == 0


# --- output


@pytest.mark.parametrize("format", ["markdown", "json", "html", "text"])
def test_every_format_to_a_file(run, transfer, tmp_path, format):
    out = tmp_path / "report"
    done = run("diff", transfer["base"], transfer["tuned"], "--format", format, "-o", out)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "")
    assert "backbone identical (3 tensors)" in out.read_text(encoding="utf-8")


def test_hostile_names_stay_on_their_line(run, tmp_path, torch):
    name = "a\x1b[2Jb\nc`d|e<script>"
    torch.save({name: torch.zeros(1)}, tmp_path / "a.pt")
    torch.save({name: torch.ones(1)}, tmp_path / "b.pt")
    done = run("diff", tmp_path / "a.pt", tmp_path / "b.pt")
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()[0]) < 300
    markdown = run("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--format", "markdown").stdout
    assert "<script>" not in markdown


def test_git_lfs_pointer_and_truncated_file_are_no_difference(run, fixtures_dir, transfer, tmp_path):
    cut = tmp_path / "cut.pt"
    shutil.copy(transfer["base"], cut)
    with open(cut, "r+b") as file:
        file.truncate(cut.stat().st_size // 2)
    done = run("diff", transfer["base"], cut)
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_folder_with_one_checkpoint_in_it_is_that_checkpoint(run, transfer, tmp_path):
    (tmp_path / "model").mkdir()
    shutil.copy(transfer["base"], tmp_path / "model" / "weights.pt")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert run("diff", tmp_path / "model", transfer["base"]).exit_code == 0
    digests = [run("digest", path).stdout.split()[0] for path in (tmp_path / "model", transfer["base"])]
    assert digests[0] == digests[1]
    shutil.copy(transfer["tuned"], tmp_path / "model" / "tuned.pt")
    done = run("diff", tmp_path / "model", transfer["base"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "2 checkpoints are in this folder: tuned.pt, weights.pt. Name one" in done.stderr
