"""Filling a model from a description gives what ``torch.load`` and ``load_state_dict`` give, bit for bit."""

import hashlib
import json
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_tools import CkptError, open_checkpoint
from ckpt_tools.errors import UnsupportedFeature
from tests.formats.as_torch import dense_bytes, sharing

torch = pytest.importorskip("torch")
nn = torch.nn
locate = pytest.importorskip("ckpt_tools.runtime.locate").locate
reload = pytest.importorskip("ckpt_tools.runtime.reload")
Tensors = pytest.importorskip("ckpt_tools.runtime.tensors").Tensors
load_into, rehearse = reload.load_into, reload.rehearse

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def saved(tmp_path, value, **options):
    """The model's state_dict in a file that holds *value*."""
    path = tmp_path / "m.pt"
    torch.save(value, path, **options)
    return open_checkpoint(path).model_state_dict()


def tensors_of(model):
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def assert_equal_models(found, expected):
    """The same names, and for each the same bits, type and flag; the same ones are one object."""
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].device.type == "cpu"
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert ours[name].requires_grad == tensor.requires_grad
        assert dense_bytes(ours[name]) == dense_bytes(tensor), name
    assert sharing({n: id(t) for n, t in ours.items()}) == sharing({n: id(t) for n, t in theirs.items()})


def randomize(model):
    """Every parameter and buffer with values of its own."""
    with torch.no_grad():
        for number, tensor in enumerate([*model.parameters(), *model.buffers()]):
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1, generator=torch.Generator().manual_seed(number))
            else:
                tensor.fill_(number)
    return model


# --- one tensor


def described(fixture):
    manifest = json.loads((FIXTURES / "MANIFEST.json").read_text("utf-8"))
    entry = next(entry for entry in manifest["fixtures"] if entry["file"] == fixture)
    return [
        (tuple(state_dict["path"]), tensor)
        for state_dict in entry.get("state_dicts", ())
        for tensor in state_dict["tensors"]
        if "sha256" in tensor
    ]


@pytest.mark.parametrize(
    "fixture",
    [
        "zip/dtypes.pt", "zip/views.pt", "zip/conj_neg.pt", "zip/channels_last.pt", "zip/expanded.pt",
        "zip/empty_and_0d.pt", "zip/big_endian.pt", "zip/big_endian_untyped.pt", "zip/repacked_deflated.pt",
        "zip/alignment_1.pt", "zip/zip64.pt", "zip/tied.pt", "zip/cuda.pt", "zip/parameters.pt", "zip/torch_1_6.pt",
        "legacy/state_dict.pt", "legacy/torch_0_1.pt", "tar/views.pt", "safetensors/dtypes.safetensors",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*support is experimental")
def test_tensors_are_those_that_torch_loads(fixture):
    checkpoint = open_checkpoint(FIXTURES / fixture)
    by_path = {state_dict.path: state_dict for state_dict in checkpoint.state_dicts}
    if checkpoint.module is not None:
        by_path[checkpoint.module_path] = checkpoint.module.state_dict()
    expected = described(fixture)
    assert expected
    tensors = Tensors()
    made = {}
    for path, entry in expected:
        found = made[entry["name"]] = tensors.make(by_path[path][entry["name"]])
        assert str(found.dtype) == f"torch.{entry['dtype']}"
        assert list(found.shape) == entry["shape"]
        assert hashlib.sha256(dense_bytes(found)).hexdigest() == entry["sha256"]
    if "big_endian" not in fixture and "conj" not in fixture:  # which become dense copies
        for _, entry in expected:
            assert list(made[entry["name"]].stride()) == entry["stride"]
            if entry["shares_with"]:
                shared = made[entry["shares_with"]].untyped_storage().data_ptr()
                assert made[entry["name"]].untyped_storage().data_ptr() == shared


def test_what_has_no_plain_bytes_is_refused():
    for fixture, message in [
        ("zip/quantized.pt", "is quantized"),
        ("zip/sparse.pt", "has no bytes of its own: it is sparse"),
        ("zip/meta.pt", "has no bytes of its own: it is meta"),
    ]:
        checkpoint = open_checkpoint(FIXTURES / fixture)
        refused = []
        for tensor in (t for s in checkpoint.state_dicts for t in s.tensors):
            try:
                Tensors().make(tensor)
            except UnsupportedFeature as error:
                refused.append(str(error))
        assert any(message in text for text in refused), (fixture, refused)


def mapping_of(address):
    """The file that is mapped at *address*, "" for memory of the process's own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            return " ".join(line.split()[5:])
    raise AssertionError("it lies nowhere")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_files_are_mapped_and_never_written(tmp_path):
    model = randomize(nn.Linear(300, 200))
    state_dict = saved(tmp_path, model.state_dict())
    path = tmp_path / "m.pt"
    before = path.read_bytes()
    found = nn.Linear(300, 200, device="meta")
    load_into(found, state_dict)
    assert mapping_of(found.weight.data_ptr()) == str(path)
    with torch.no_grad():
        found.weight.fill_(7)
    assert path.read_bytes() == before
    # what is not as the machine wants it is copied
    legacy = saved(tmp_path, model.state_dict(), _use_new_zipfile_serialization=False)
    storage = legacy["weight"].storage
    load_into(found, legacy)
    assert (mapping_of(found.weight.data_ptr()) == str(path)) == (storage.source.locate(storage.offset)[1] % 4 == 0)
    assert torch.equal(found.weight, model.weight)


# --- whole models


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "squeezenet1_1",
        "densenet121",
        "shufflenet_v2_x0_5",
        "efficientnet_b0",
        "mnasnet0_5",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torchvision_models(tmp_path, name, zipped):
    pytest.importorskip("torchvision")
    state_dict = saved(
        tmp_path,
        randomize(locate(f"torchvision:{name}", empty=False)).state_dict(),
        _use_new_zipfile_serialization=zipped,
    )
    expected = locate(f"torchvision:{name}", empty=False)
    expected.load_state_dict(torch.load(tmp_path / "m.pt"))
    found = locate(f"torchvision:{name}")
    report = load_into(found, state_dict)
    assert report == replace(
        report, missing=(), unexpected=(), mismatched=(), converted=(), supplied=(), prefix=("", "")
    )
    assert report.loaded == tuple(expected.state_dict())
    assert reload.without_data(found) == []
    assert_equal_models(found, expected)


def test_every_module_fixture_fills_a_model_of_its_class(tmp_path):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.LSTM(4, 2), nn.Embedding(5, 2, padding_idx=0))
    state_dict = saved(tmp_path, randomize(model))
    with torch.device("meta"):
        found = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.LSTM(4, 2), nn.Embedding(5, 2, padding_idx=0))
    assert load_into(found, state_dict).exact
    assert_equal_models(found, model)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.embed


@pytest.mark.parametrize("dropped", [[], ["head.weight"], ["embed.weight", "again.weight"]])
def test_ties_are_kept(tmp_path, dropped):
    entries = Tied().state_dict()
    for name in dropped:
        del entries[name]
    model = Tied().to("meta")
    model.head.weight = model.embed.weight  # .to("meta") does not keep it
    report = load_into(model, saved(tmp_path, entries))
    assert report.exact
    assert set(report.loaded) == {"embed.weight", "head.weight", "again.weight"}
    assert model.head.weight is model.embed.weight is model.again.weight
    assert torch.equal(model.head.weight, next(iter(entries.values())))


def test_where_the_file_has_two_values_for_one_parameter_torchs_choice_holds(tmp_path):
    entries = OrderedDict((name, torch.full((7, 3), float(i))) for i, name in enumerate(Tied().state_dict()))
    expected, found = Tied(), Tied()
    expected.load_state_dict(entries)
    load_into(found, saved(tmp_path, entries))
    assert_equal_models(found, expected)


@pytest.mark.parametrize(
    ("file", "own", "prefix"),
    [
        ("module.", "", ("module.", "")),
        ("module._orig_mod.", "", ("module._orig_mod.", "")),
        ("model.", "", ("model.", "")),
        ("", "module.", ("", "module.")),
        ("module.", "module.", ("", "")),
        ("_orig_mod.", "module.", ("_orig_mod.", "module.")),
        ("module.model.", "model.", ("module.model.", "model.")),
    ],
)
def test_wrappers_prefixes_are_exchanged(tmp_path, file, own, prefix):
    def model():
        made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        return nn.ModuleDict({own[:-1]: made}) if own else made

    bare = randomize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    entries = OrderedDict((file + name, tensor) for name, tensor in bare.state_dict().items())
    entries._metadata = OrderedDict(
        [("", {"version": 1}), *((f"{file}{name}".rstrip("."), {"version": 2}) for name in ("", "0", "1"))]
    )
    found = model()
    flags = {name: True for name in entries if name.endswith(("weight", "bias"))}
    state_dict = saved(tmp_path, entries)
    assert reload.requires_grad_of(found, state_dict) == flags
    report = load_into(found, state_dict)
    assert (report.exact, report.prefix) == (True, prefix)
    assert dense_bytes(next(found.parameters())) == dense_bytes(bare[0].weight)


def test_metadata_reaches_the_modules_under_a_stripped_prefix(tmp_path):
    """BatchNorm counts its batches since version 2: without the version, a file is taken for one from before."""
    bare = nn.BatchNorm1d(2)
    entries = OrderedDict((f"module.{name}", tensor) for name, tensor in bare.state_dict().items())
    del entries["module.num_batches_tracked"]
    for versions, missing, supplied in [
        ({}, (), ("num_batches_tracked",)),
        ({"module": {"version": 1}}, (), ("num_batches_tracked",)),
        ({"module": {"version": 2}}, ("num_batches_tracked",), ()),
    ]:
        entries._metadata = OrderedDict(versions)
        with torch.device("meta"):
            found = nn.BatchNorm1d(2)
        report = load_into(found, saved(tmp_path, entries))
        assert (report.missing, report.supplied) == (missing, supplied)
        assert report.loaded == ("weight", "bias", "running_mean", "running_var")
        # and it is real in either case
        assert found.num_batches_tracked.item() == 0


def test_what_does_not_fit_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    entries = model.state_dict()
    entries["1.weight"] = torch.zeros(9, 3)
    entries["0.weight"] = entries["0.weight"].half()
    del entries["2.bias"]
    entries["extra.weight"] = torch.zeros(1)
    entries["epoch"] = 3
    with torch.device("meta"):
        found = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    report = load_into(found, saved(tmp_path, entries))
    assert report == reload.LoadReport(
        loaded=("0.weight", "0.bias", "1.bias", "2.weight"),
        missing=("2.bias",),
        unexpected=("epoch", "extra.weight"),
        mismatched=(reload.Mismatch("1.weight", (9, 3), "float32", (4, 3), "float32"),),
        converted=(reload.Mismatch("0.weight", (3, 2), "float16", (3, 2), "float32"),),
        supplied=(),
        prefix=("", ""),
    )
    assert not report.exact
    assert torch.equal(found[0].weight, entries["0.weight"].float())
    assert reload.without_data(found) == ["1.weight", "2.bias"]


def test_a_scalar_of_old_torch_was_a_vector(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

    model = Scaled()
    assert load_into(model, saved(tmp_path, {"scale": torch.tensor([2.5])})).exact
    assert (model.scale.shape, model.scale.item()) == ((), 2.5)


def test_the_class_may_rename_old_keys(tmp_path):
    vision = pytest.importorskip("torchvision").models.VisionTransformer
    options = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 4, "mlp_dim": 6}
    model = randomize(vision(**options))
    entries = OrderedDict()
    for name, tensor in model.state_dict().items():
        entries[re.sub(r"mlp\.(\d)", lambda m: f"mlp.linear_{1 if m[1] == '0' else 2}", name)] = tensor
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in entries
    found = vision(**options)
    assert load_into(found, saved(tmp_path, entries)).exact
    assert_equal_models(found, model)


def test_extra_state_is_handed_over(tmp_path):
    class Counts(nn.Module):
        steps = None

        def get_extra_state(self):
            return {"steps": [1, 2]}

        def set_extra_state(self, state):
            self.steps = state

    tensors = {"spare": torch.ones(1), "more": torch.ones(1)}
    model = Counts()
    report = load_into(model, saved(tmp_path, {"_extra_state": {"steps": [3]}, **tensors}))
    assert (model.steps, report.unexpected, report.missing) == ({"steps": [3]}, ("spare", "more"), ())
    model = Counts()
    report = load_into(model, saved(tmp_path, {"_extra_state": torch.tensor([4]), **tensors}))
    assert model.steps.tolist() == [4]
    # what would have to be run to be made is not made up
    model = Counts()
    report = load_into(model, saved(tmp_path, {"_extra_state": {"steps": {5}, "when": complex(1, 2)}, **tensors}))
    assert (model.steps, report.unexpected) == (None, ("_extra_state", "spare", "more"))


def test_flags_types_and_mode_are_the_classs(tmp_path):
    state_dict = saved(tmp_path, nn.Linear(2, 2).state_dict())
    model = nn.Linear(2, 2, device="meta").requires_grad_(False).eval()
    load_into(model, state_dict)
    assert (type(model.weight), model.weight.requires_grad, model.training) == (nn.Parameter, False, False)


def test_non_persistent_buffers_stay_real(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = torch.nn.Linear(2, 2)\n"
        "        self.register_buffer('scale', torch.arange(3.0), persistent=False)\n"
        "        self.register_buffer('shift', torch.arange(2.0))\n"
    )
    model = locate(f"{tmp_path}/net.py:Net")
    report = load_into(model, saved(tmp_path, {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)}))
    assert report.missing == ("shift",)
    assert (model.scale.tolist(), model.shift.tolist()) == ([0, 1, 2], [0, 1])
    assert reload.without_data(model) == []
    # on the meta device nobody knows their values
    assert reload.without_data(model.to("meta")) == ["linear.weight", "linear.bias", "scale", "shift"]


def test_a_rehearsal_changes_nothing_and_reads_nothing(tmp_path):
    entries = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    entries["0.bias"] = torch.zeros(4)
    state_dict = saved(tmp_path, {f"module.{name}": tensor for name, tensor in entries.items()})
    model = randomize(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    before = {name: dense_bytes(tensor) for name, tensor in tensors_of(model).items()}
    path = tmp_path / "m.pt"
    path.write_bytes(b"")  # nothing is left to read
    rehearsed = rehearse(model, state_dict)
    assert {name: dense_bytes(tensor) for name, tensor in tensors_of(model).items()} == before
    again = saved(tmp_path, {f"module.{name}": tensor for name, tensor in entries.items()})
    assert load_into(model, again) == rehearsed
    assert [mismatch.name for mismatch in rehearsed.mismatched] == ["0.bias"]


def test_a_class_that_refuses_is_told(tmp_path):
    class Refuses(nn.Linear):
        def _load_from_state_dict(self, *args):
            args[-1].append("size mismatch for\n\tyou")

    with pytest.raises(CkptError, match=r"the class refuses the weights: .* size mismatch for you"):
        load_into(Refuses(2, 2), saved(tmp_path, nn.Linear(2, 2).state_dict()))


def test_flags_by_name(tmp_path):
    model = Tied()
    model.embed.weight.requires_grad_(False)
    assert reload.requires_grad_of(model) == {"embed.weight": False, "head.weight": False, "again.weight": False}
