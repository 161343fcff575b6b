"""What ``ckpt inspect`` says of files whose content is known."""

import json
from pathlib import Path

import jsonschema
import pytest

from ckpt_tools import CkptError, open_checkpoint
from ckpt_tools.analysis.name_hints import name_hints
from ckpt_tools.analysis.overview import overview, wrapper_prefix
from ckpt_tools.analysis.tree import MAX_DEPTH, fold, grow
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.render import render

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
MANIFEST = json.loads((FIXTURES / "MANIFEST.json").read_text())
SCHEMA = json.loads((ROOT / "docs" / "schema" / "inspect.schema.json").read_text())


# described in the manifest by what is in their shards, but a part is never given for the whole
CONTRADICTORY = {"sharded/missing_shard": "shards is missing", "sharded/wrong_index": "in no shard: fc3.weight"}


@pytest.mark.parametrize(
    "entry",
    [e for e in MANIFEST["fixtures"] if not e.get("error") and e["file"] not in CONTRADICTORY],
    ids=lambda e: e["file"],
)
def test_json_follows_the_schema_for_every_fixture(entry):
    report = overview(open_checkpoint(FIXTURES / entry["file"]), all_tensors=True)
    document = json.loads(render([report], "json", command="inspect"))
    jsonschema.validate(document, SCHEMA)
    for format in ("text", "markdown"):
        assert render([report], format, command="inspect", width=80)


@pytest.mark.parametrize("entry", [e for e in MANIFEST["fixtures"] if e.get("error")], ids=lambda e: e["file"])
def test_what_is_no_checkpoint_is_named(entry):
    with pytest.raises(CkptError) as caught:
        open_checkpoint(FIXTURES / entry["file"])
    for word in [entry["error"]] if isinstance(entry["error"], str) else entry["error"]:
        assert word.lower() in str(caught.value).lower()


@pytest.mark.parametrize(("name", "problem"), CONTRADICTORY.items())
def test_shards_that_contradict_their_index_are_refused(name, problem):
    with pytest.raises(CkptError, match=problem):
        open_checkpoint(FIXTURES / name)


def facts(report):
    return dict(report.blocks[0].rows)


def test_refused_globals_come_with_the_list_that_allows_them():
    torch = pytest.importorskip("torch")
    from torch.serialization import get_unsafe_globals_in_checkpoint

    path = FIXTURES / "training" / "custom_objects.pt"
    told = overview(open_checkpoint(path)).data["weights_only"]
    wanted = set(get_unsafe_globals_in_checkpoint(str(path)))
    assert {r["what"] for r in told["refused"]} == wanted
    assert {name if "." in name else f"builtins.{name}" for name in told["add_safe_globals"]} == wanted
    assert torch.__version__


def test_a_key_path_leads_to_each_refused_global():
    refused = overview(open_checkpoint(FIXTURES / "model" / "cnn.pt")).data["weights_only"]["refused"]
    where = {r["what"].rpartition(".")[2]: ".".join(map(str, r["path"])) for r in refused}
    assert where["Linear"] == "head"
    assert where["SmallCNN"] == ""


def test_the_key_to_load_from_is_told():
    report = overview(open_checkpoint(FIXTURES / "training" / "misspelt.pt"))
    assert "['model_satate_dict']" in facts(report)["to load"]
    assert report.data["training"]["epoch"]["path"] == ["epoch"]


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["module.a", "module.b.c"], "module."),
        (["module._orig_mod.a", "module._orig_mod.b"], "module._orig_mod."),
        (["module.a", "b"], ""),
        (["modules.a"], ""),
        (["module"], ""),
        ([], ""),
    ],
)
def test_wrapper_prefix(names, prefix):
    assert wrapper_prefix(names) == prefix


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        ("checkpoint_model_3_0.3_0.9.pt", [("epoch", 3, True), ("loss", 0.3, True), ("metric", 0.9, True)]),
        ("epoch=3-val_loss=0.12.ckpt", [("epoch", 3, False), ("val_loss", 0.12, False)]),
        ("model_epoch_12.pth", [("epoch", 12, False)]),
        ("ckpt-step2000.safetensors", [("step", 2000, False)]),
        ("resnet18-f37072fd.pth", [("sha256 prefix", "f37072fd", False)]),
        ("resnet50.pth", []),
        ("llama-2-7b.bin", []),
        ("model_v1.5.pt", []),
        ("best.pt", []),
    ],
)
def test_file_name_hints(name, hints):
    assert [tuple(hint) for hint in name_hints(f"some/folder_9/{name}")] == hints


def tensor(name, *shape):
    return TensorInfo(name, BY_NAME["float32"], shape)


def names_in(root):
    return [node.path for node in root.walk() if node.path]


def test_equal_numbered_siblings_fold():
    tensors = [tensor(f"h.{i}.{part}", 2) for i in range(12) for part in ("a.w", "b.w")]
    assert names_in(fold(grow(tensors))) == ["h", "h.{0-11}", "h.0.a", "h.0.b"]


def test_an_outlier_stays_between_two_runs():
    tensors = [tensor(f"h.{i}.w", 3 if i == 4 else 2) for i in range(9)]
    assert names_in(fold(grow(tensors))) == ["h", "h.{0-3}", "h.4", "h.{5-8}"]


def test_names_that_end_in_numbers_fold_too():
    tensors = [tensor(f"encoder_layer_{i}.w", 2) for i in range(3)] + [tensor("other_7.w", 2)]
    assert names_in(fold(grow(tensors))) == ["encoder_layer_{0-2}", "other_7"]


def test_a_hostile_name_is_not_a_deep_tree():
    root = fold(grow([tensor("a." * 100_000 + "w", 2)]))
    assert len(names_in(root)) == MAX_DEPTH
