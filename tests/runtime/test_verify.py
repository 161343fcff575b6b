"""The checks of `ckpt verify`, one by one, on models made for the purpose."""

import copy
import json

import numpy
import pytest

from ckpt_tools.errors import CkptError
from ckpt_tools.verification.job import Job
from ckpt_tools.verification.results import Verification

torch = pytest.importorskip("torch")
nn = torch.nn
checks = pytest.importorskip("ckpt_tools.runtime.verify").checks
names = pytest.importorskip("ckpt_tools.runtime.verify.names")

NETS = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, width=4, freeze=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, classes)
        if freeze:
            self.body.requires_grad_(False)

    def forward(self, x):
        return self.head(self.body(x))

class Needs(Net):
    def __init__(self, in_features, num_classes, activation):
        super().__init__(num_classes)

class Odd(Net):
    """Its body has other names."""
    def __init__(self):
        super().__init__()
        self.trunk = self.body
        del self._modules["body"]

    def forward(self, x):
        return self.head(self.trunk(x))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))

class Mixes(Net):
    def forward(self, x):
        x = super().forward(x)
        return x - x.mean(0) * 0.5

class Counts(Net):
    calls = 0
    def forward(self, x):
        Counts.calls += 1
        return super().forward(x) + Counts.calls

class Alone(Net):
    def forward(self, x):
        assert len(x) == 1, "one at a time"
        return super().forward(x)

class Norm(nn.Module):
    def __init__(self, new=True):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm if new else nn.utils.weight_norm
        self.layer = norm(nn.Linear(4, 3))

    def forward(self, x):
        return self.layer(x)

class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x, scale=None):
        y = self.net(x)
        return {"logits": y if scale is None else y * scale, "hidden": (x, [x])}

class Raises(Net):
    def state_dict(self, *args, **kwargs):
        raise LookupError("no state")

class Reads(Net):
    """Reads its parameters while it is built, so that they must be real."""
    def __init__(self):
        super().__init__()
        self.largest = float(self.head.weight.max())

class Zeroes(Net):
    """Changes what it loads."""
    def _load_from_state_dict(self, state_dict, prefix, *rest):
        state_dict[prefix + "head.weight"] = torch.zeros(3, 4)
        super()._load_from_state_dict(state_dict, prefix, *rest)

class Many(nn.Module):
    """A layer of each kind that comes in several sizes."""
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.words = nn.Embedding(10, 4)
        self.position = nn.Embedding(5, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.mix = nn.Linear(4, 6)
        self.mix.weight = nn.Parameter(torch.zeros(6, 4))
        self.point = nn.Conv2d(4, 6, 1)
        self.deep = nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(4, 3)

def Normed():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

def pruned():
    from torch.nn.utils import prune
    net = Net()
    prune.l1_unstructured(net.head, "weight", 0.5)
    return net

class NoForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

class Aux(Net):
    def __init__(self, aux_loss=False):
        super().__init__()
        if aux_loss:
            self.aux_classifier = nn.Linear(4, 3)
'''


@pytest.fixture
def nets(tmp_path):
    """The module of `NETS`, and its path."""
    path = tmp_path / "nets_of_verify.py"
    path.write_text(NETS)
    module = {}
    exec(compile(NETS, str(path), "exec"), module)
    return module


@pytest.fixture
def verify(tmp_path, monkeypatch):
    """``verify(state, "Net", …)``: the checks of a file of *state* against a class of `NETS`."""
    monkeypatch.chdir(tmp_path)

    def verify(state, model="Net", path="file.pt", **options):
        if state is not None:
            torch.save(state, path)
        spec = model if ":" in model or model == "pickle" else f"nets_of_verify.py:{model}"
        job = Job(path, spec, **options)
        found = Verification(path, spec, list(checks(job)))
        json.dumps(found.as_json(), allow_nan=False)
        return found

    return verify


def trained(model, seed=0):
    """*model* with other values than it was made with."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return model


def problems(found):
    return [(problem.code, problem.severity) for problem in found.problems if problem.severity != "note"]


def problem(found, code):
    return next(problem for problem in found.problems if problem.code == code)


# --- opens, builds


def test_what_no_model_is_in(verify, nets):
    assert problems(verify({"a": 1})) == [("no-model", "error")]
    with pytest.raises(CkptError, match="holds 2 state_dicts"):
        verify({"net": nets["Net"]().state_dict(), "critic": nets["Net"]().state_dict()})


def test_select_chooses_the_state_dict(verify, nets):
    model = trained(nets["Net"]())
    found = verify({"net": model.state_dict(), "critic": nets["Net"](5).state_dict()}, select="net")
    assert problems(found) == []
    assert problem(found, "weights-not-at-root").remedy == "model.load_state_dict(torch.load(…)['net'])"


def test_a_page_in_place_of_a_file(verify, nets, tmp_path):
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html><body>404</body></html>")
    found = verify(None, path="page.pt")
    assert problems(found) == [("no-checkpoint", "error")]
    assert {check.name: check.verdict for check in found.checks}["builds"] == "passed"


def test_arguments_are_suggested_from_head_first_layer_and_hyperparameters(verify, nets):
    state = trained(nets["Net"](7)).state_dict()
    found = verify({"state_dict": state, "hyper_parameters": {"activation": "gelu"}}, "Needs")
    assert problem(found, "arguments-missing").remedy == (
        "The file suggests --kwargs in_features=4 --kwargs num_classes=7 --kwargs activation=gelu, "
        "with which it can be built"
    )
    assert found["keys"].verdict == "passed"
    # nothing is known of the activation here
    found = verify({"state_dict": state}, "Needs")
    assert problem(found, "arguments-missing").remedy == (
        "The file suggests --kwargs in_features=4 --kwargs num_classes=7; give the rest with --kwargs activation=VALUE"
    )
    assert found["keys"].message == "the class could not be built"


def test_pickle_needs_trust(verify, nets):
    model = nn.Sequential(nn.Linear(4, 3))
    torch.save(model, "whole.pt")
    with pytest.raises(CkptError, match="runs what the file says"):
        verify(None, "pickle", "whole.pt")
    assert problems(verify(None, "pickle", "whole.pt", trust=True)) in ([], [("head-untrained", "warning")])


def test_class_without_forward(verify, nets):
    found = verify({"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3)}, "NoForward", inputs=["4"])
    assert problem(found, "forward-fails").remedy == "NoForward has no forward method: name the class that has one"


def test_constructor_that_reads_its_parameters(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), "Reads", inputs=["4"])
    assert problems(found) == []
    assert found["loads"].message == "6 tensors assigned from the file"


def test_errors_of_the_class_in_torchs_own_methods_are_told(verify, nets):
    found = verify(nets["Net"]().state_dict(), "Raises")
    assert problem(found, "class-raised").message.startswith("LookupError: no state")


# --- keys


def test_missing_and_unexpected_and_what_strict_false_would_do(verify, nets):
    state = trained(nets["Net"]()).state_dict()
    state["extra.weight"] = torch.zeros(2)
    del state["head.weight"], state["body.2.bias"]
    found = verify(state)
    assert problems(found) == [("missing-tensors", "error"), ("unexpected-tensors", "error")]
    assert problem(found, "missing-tensors").message == (
        "2 tensors of the class are not in the file: body.2.bias, head.weight. load_state_dict refuses the file; with "
        "strict=False it would load 4 of 6 tensors (70.91 % of parameter elements), leave 2 tensors of the class as "
        "made and drop 1 tensor of the file, without a word"
    )
    model = nets["Net"]()
    answer = model.load_state_dict(state, strict=False)
    assert (len(answer.missing_keys), len(answer.unexpected_keys)) == (2, 1)
    assert found["loads"].verdict == "skipped"


def test_what_may_be_missing(verify, nets):
    state = trained(nets["Net"]()).state_dict()
    state["extra.weight"] = torch.zeros(2)
    del state["head.bias"]
    found = verify(state, allow_missing=["head.*"], allow_unexpected=["extra.*"], inputs=["4"])
    assert problems(found) == []
    assert found["loads"].message == "5 tensors assigned from the file, 1 tensor as the class made them"
    assert found["round-trip"].message == "5 tensors the same bit for bit, 1 tensor not from the file"


def test_least_share(verify, nets):
    state = trained(nets["Net"]()).state_dict()
    del state["head.bias"]  # 3 of 55
    assert verify(state, min_loaded=0.94).passed
    assert problems(verify(state, min_loaded=0.94)) == [("missing-tensors", "warning")]
    assert problems(verify(state, min_loaded=0.95)) == [("missing-tensors", "error")]


def test_shapes_of_the_body(verify, nets):
    found = verify(nets["Net"](width=6).state_dict())
    assert [code for code, severity in problems(found) if severity == "error"] == ["shape-mismatch"]
    assert "body.0.weight 6×4 in the file, 4×4 in the class" in problem(found, "shape-mismatch").message


@pytest.mark.parametrize("on", [True, False])
def test_auxiliary_head(verify, nets, on):
    state = trained(nets["Aux"](on)).state_dict()
    found = verify(state, "Aux", kwargs={"aux_loss": not on})
    assert problem(found, "auxiliary-heads").remedy.startswith(
        f"Build the class with{' it' if on else 'out'}: --kwargs aux_loss={str(on).lower()}"
    )


def test_averaged_model(verify, nets, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(trained(nets["Net"]()))
    found = verify(averaged.state_dict(), write_fixed="fixed.safetensors")
    assert problems(found) == [("wrapped-names", "error"), ("averaged-model", "error")]
    assert problems(verify(None, path="fixed.safetensors")) == []


def test_layers_of_another_name_are_a_guess(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), "Odd", inputs=["4"])
    codes = [code for code, _ in problems(found)]
    assert codes == ["other-prefix"]
    assert found["runs"].verdict == "passed"
    assert found["keys"].facts["renaming"]["body.0.weight"] == "trunk.0.weight"


@pytest.mark.parametrize("new", [True, False])
def test_weight_norm_of_the_other_kind(verify, nets, new):
    with pytest.warns(FutureWarning) if new else torch.no_grad():
        state = trained(nets["Norm"](not new)).state_dict()
    if not new:
        with pytest.warns(FutureWarning):
            found = verify(state, "Norm", kwargs={"new": new}, inputs=["4"])
        assert problems(found) == [("weight-norm-names", "error")]
    else:
        # the new kind translates the old names itself
        found = verify(state, "Norm", kwargs={"new": new}, inputs=["4"])
        assert problems(found) == []
    assert found["runs"].verdict == "passed"


def info(name, *shape):
    from ckpt_tools.checkpoint import TensorInfo
    from ckpt_tools.dtypes import BY_NAME

    return TensorInfo(name, BY_NAME["float32"], shape)


SHAPES = {"a.b.weight": (3, 4), "a.b.bias": (3,), "c.weight": (5, 3), "c.bias": (5,)}


@pytest.mark.parametrize(
    ("rename", "codes"),
    [
        (lambda name: "module." + name, ["wrapped-names"]),
        (lambda name: "_orig_mod.module." + name, ["stacked-wrappers"]),
        (lambda name: "model." + name, ["lightning-names"]),
        (lambda name: "generator." + name, ["prefixed-names"]),
        (lambda name: "generator.net." + name, ["prefixed-names"]),
        (lambda name: name.replace(".", ""), ["flattened-names"]),
        (lambda name: "model" + name.replace(".", ""), ["flattened-names"]),
        (
            lambda name: "module." + name.replace("weight", "gamma").replace("bias", "beta"),
            ["gamma-names", "wrapped-names"],
        ),
        (lambda name: name.replace("a.b", "x"), ["other-prefix"]),
    ],
)
def test_renaming_to_a_fixed_point(rename, codes):
    tensors = [info(rename(name), *shape) for name, shape in SHAPES.items()]
    way = names.renaming(tensors, SHAPES)
    assert way.names == {rename(name): name for name in SHAPES if rename(name) != name}
    assert sorted(step.code for step in way.steps) == codes
    assert not way.guess


def test_renaming_each_layer_is_a_guess():
    shapes = {
        f"layers.{i}.{leaf}": (i + 1, 3)[: 2 if leaf == "weight" else 1]
        for i in range(20)
        for leaf in ("weight", "bias")
    }
    renames = {
        name: name.replace(f"layers.{i}.", f"block{i}_of_it.") for i in range(20) for name in shapes if f".{i}." in name
    }
    way = names.renaming([info(renames[name], *shape) for name, shape in shapes.items()], shapes)
    assert [step.code for step in way.steps] == ["renamed-layers"]
    assert way.guess
    assert way.names == {new: old for old, new in renames.items()}


def test_no_renaming_where_nothing_fits():
    assert names.renaming([info("x.weight", 7, 7), info("x.bias", 7)], SHAPES) is None
    assert names.renaming([info("x.bias", 3), info("y.weight", 70, 70)], SHAPES) is None


def test_nothing_to_mend_writes_nothing(verify, nets, tmp_path):
    found = verify(trained(nets["Net"]()).state_dict(), write_fixed="fixed.pt", write_key_map="map.json")
    assert "nothing-to-mend" in found.codes
    assert [path.name for path in tmp_path.glob("*.json")] + [path.name for path in tmp_path.glob("fixed*")] == []


def test_key_map_names_tensors_before_all_else(verify, nets, tmp_path):
    state = {f"net.{name}": tensor for name, tensor in trained(nets["Net"]()).state_dict().items()}
    names = {name: name.removeprefix("net.") for name in state}
    found = verify(state, key_map=names)
    assert found["keys"].verdict == "passed"
    assert "prefixed-names" not in found.codes
    # what is mended after it is written from the file's own names
    outer = {f"module.{name}": tensor for name, tensor in state.items()}
    found = verify(
        outer, key_map={f"module.{name}": f"module.{new}" for name, new in names.items()}, write_key_map="map.json"
    )
    assert "wrapped-names" in found.codes
    assert json.loads((tmp_path / "map.json").read_text()) == {f"module.{name}": new for name, new in names.items()}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"no.such": "other"}, "the key map renames what the file does not have: no.such"),
        ({"head.weight": "head.bias"}, "the key map gives more than one tensor the name head.bias"),
    ],
)
def test_key_map_that_cannot_be_used(names, said, verify, nets):
    state = trained(nets["Net"]()).state_dict()
    assert "head.weight" in state
    found = verify(state, key_map=names)
    assert found["keys"].verdict == "failed"
    assert "key-map-names" in found.codes
    assert said in str(found)


def test_fixed_file_is_not_written_over_another(verify, nets, tmp_path):
    (tmp_path / "fixed.pt").write_bytes(b"precious")
    state = {f"module.{name}": tensor for name, tensor in nets["Net"]().state_dict().items()}
    with pytest.raises(CkptError, match="exists already"):
        verify(state, write_fixed="fixed.pt")
    assert (tmp_path / "fixed.pt").read_bytes() == b"precious"
    verify(state, write_fixed="fixed.pt", force=True)
    assert set(torch.load("fixed.pt")) == set(nets["Net"]().state_dict())


# --- where what does not fit comes from


def saved_as(change, state):
    """*state* after *change* has done to it what a habit or a tool does."""
    changed = dict(state)
    change(changed)
    return changed


def prune(state):
    state["head.weight_orig"], state["head.weight_mask"] = state.pop("head.weight"), torch.ones(3, 4)


def spectral(state):
    state["body.0.weight_orig"] = state.pop("body.0.weight")
    state["body.0.weight_u"] = state["body.0.weight_v"] = torch.ones(4)


def parametrize(state):
    weight = state.pop("body.0.weight")
    state["body.0.parametrizations.weight.original0"], state["body.0.parametrizations.weight.original1"] = (
        weight.norm(dim=1, keepdim=True),
        weight,
    )


def quantize(state):
    del state["head.weight"], state["head.bias"]
    for name in ("scale", "zero_point", "_packed_params.dtype", "_packed_params._packed_params"):
        state[f"head.{name}"] = torch.ones(())


def four_bits(state):
    state["body.2.weight.absmax"] = state["body.2.weight.quant_map"] = torch.ones(4)


def adapt(state):
    for leaf in ("weight", "bias"):
        state[f"head.base_layer.{leaf}"] = state.pop(f"head.{leaf}")
    state["head.lora_A.default.weight"], state["head.lora_B.default.weight"] = torch.ones(1, 4), torch.ones(3, 1)


def profile(state):
    state["total_ops"] = state["body.0.total_params"] = torch.ones(1)


def behead(state):
    del state["head.weight"], state["head.bias"]


def another_head(state):
    state["fc.weight"], state["fc.bias"] = torch.randn(9, 4), torch.randn(9)
    behead(state)


def average(state):
    for name in list(state):
        state[f"ema_{name.replace('.', '_')}"] = state[name] + 1


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (average, "averages-beside", "averages of 6 tensors beside these (ema_body_0_weight, ema_body_0_bias"),
        (prune, "pruned-weights", "head.weight is in the file in the parts that torch.nn.utils.prune makes of it "
         "(head.weight_orig, head.weight_mask)"),
        (spectral, "reparametrized-weights", "the parts that spectral_norm makes of it (body.0.weight_orig, "
         "body.0.weight_u, body.0.weight_v)"),
        (parametrize, "reparametrized-weights", "the parts that torch.nn.utils.parametrize makes of it"),
        (quantize, "quantized-weights", "1 layer is quantized in the file (head), and not in the class"),
        (four_bits, "quantized-weights", "1 layer is quantized in the file (body.2), and not in the class"),
        (adapt, "lora-weights", "it holds 2 matrices of LoRA beside the weights (head.lora_A.default.weight,"),
        (profile, "profiler-buffers", "total_ops, body.0.total_params are in the file alone"),
        (behead, "head-missing", "the head `head` of the class is not in the file. load_state_dict refuses"),
        (another_head, "head-missing", "is not in the file, which has `fc` with 9 outputs instead"),
    ],
)  # fmt: skip
def test_origins_of_names(verify, nets, change, code, words):
    found = verify(saved_as(change, trained(nets["Net"]()).state_dict()))
    assert problems(found)[:1] == [(code, "error")]
    assert [c for c, severity in problems(found) if severity == "error"] == [code]
    assert words in problem(found, code).message


def test_what_is_there_in_place_of_a_model(verify, nets):
    model = nets["Net"]()
    optimizer = stepped(model, torch.optim.Adam(model.parameters()))
    found = verify(optimizer.state_dict())
    assert problem(found, "no-model").message == "there is no model in it: it holds the state of Adam alone"
    found = verify(list(model.parameters()))
    assert "6 tensors without names, as list(model.parameters()) gives" in problem(found, "no-model").message
    assert problem(verify({"epoch": 3}), "no-model").message == "there is no model in it: no state_dict, no module"


def test_weights_beside_those_that_are_verified(verify, nets):
    state = trained(nets["Net"]()).state_dict()
    found = verify({"model": state, "model_ema": dict(state)})
    assert problem(found, "other-weights").message == "verified is model; the file also holds model_ema"
    assert "other-weights" not in verify({"model": state, "model_ema": dict(state)}, select="model").codes


def test_tensors_tagged_for_a_device(fixtures_dir):
    found = Verification("", "", list(checks(Job(str(fixtures_dir / "zip/cuda.pt"), "torchvision:alexnet"))))
    assert problem(found, "device-tag").remedy == 'torch.load(…, map_location="cpu")'


def test_the_model_of_another_name(tmp_path):
    models = pytest.importorskip("torchvision").models
    torch.save(models.squeezenet1_0(num_classes=3).state_dict(), tmp_path / "s.pt")
    job = Job(str(tmp_path / "s.pt"), "torchvision:squeezenet1_1", kwargs={"num_classes": 4})
    found = Verification(job.path, job.model, list(checks(job)))
    assert problem(found, "sibling-model").remedy == "--model torchvision:squeezenet1_0"
    assert problem(found, "sibling-model").message.endswith("those of torchvision:squeezenet1_0, but for its head")
    assert problems(found)[0] == ("sibling-model", "error")


def test_layers_numbered_otherwise(verify, nets):
    state = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2)).state_dict()
    found = verify(state, "Normed")
    assert "what is 2 in the class is 3 in the file" in problem(found, "renumbered-layers").message
    assert found["loads"].verdict == "passed"


def test_a_variance_below_zero(verify, nets):
    state = nets["Normed"]().state_dict()
    state["1.running_var"][1] = -1e-3
    found = verify(state, "Normed", inputs=["4"])
    assert "1.running_var is below 0 in places" in problem(found, "negative-variance").message
    assert found["loads"].verdict == "failed"


def test_a_class_that_is_reparametrized_before_loading(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), "pruned")
    assert problems(found) == [("class-reparametrized", "error")]
    assert problem(found, "class-reparametrized").remedy == "Load first, and apply torch.nn.utils.prune afterwards"


def test_an_adapter_alone_is_no_other_class(verify, nets):
    state = {f"base_model.model.head.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    found = verify(state)
    assert problems(found) == [("lora-weights", "error")]
    assert "it holds the matrices of LoRA alone" in problem(found, "lora-weights").message


def test_parameters_saved_without_buffers(verify, nets):
    model = nets["Normed"]()
    found = verify(dict(model.named_parameters()), "Normed")
    assert ("batchnorm-statistics-missing", "error") in problems(found)
    assert "(2 tensors: 1.running_mean, 1.running_var)" in problem(found, "batchnorm-statistics-missing").message
    assert "missing-tensors" not in found.codes


@pytest.mark.parametrize(
    ("name", "shape", "code", "words"),
    [
        ("stem.weight", (6, 1, 3, 3), "input-channels", "the first layer takes 1 channels in the file and 3 in"),
        ("words.weight", (12, 4), "vocabulary-size", "the table has 12 rows in the file and 10 in the class"),
        ("position.weight", (9, 4), "input-size", "the class takes inputs of another length"),
        ("pos_embed", (1, 9, 4), "input-size", "9 positions in the file and 5 in the class"),
        ("mix.weight", (4, 6), "axes-permuted", "the same sizes in another order"),
        ("point.weight", (6, 4), "shape-mismatch", "the same number of elements in another shape"),
        ("deep.weight", (6, 6, 3, 5), "shape-mismatch", "deep.weight 6×6×3×5 in the file, 6×6×3×3 in the class"),
        ("head.weight", (7, 4), "head-classes", "7 outputs in the file and 3 in the class"),
    ],
)  # fmt: skip
def test_origins_of_shapes(verify, nets, name, shape, code, words):
    state = nets["Many"]().state_dict()
    state[name] = torch.randn(shape)
    found = verify(state, "Many")
    assert [c for c, severity in problems(found) if severity == "error"] == [code]
    assert words in problem(found, code).message


# --- transfer


def test_expectations_hold_against_the_class(verify, nets):
    state = trained(nets["Net"]()).state_dict()
    kept = {"frozen": ["body.*"], "trainable": ["head.*"]}
    assert problems(verify(state, kwargs={"freeze": True}, **kept)) == []
    found = verify(state, **kept)
    assert problems(found) == [("not-frozen", "error")]
    assert problem(found, "not-frozen").message == (
        "4 parameters that should be frozen (body.*) are not: body.0.weight, body.0.bias, body.2.weight and 1 more: "
        "requires_grad=True as the class builds it, which freezes nothing; what the training script froze is not in "
        "the file"
    )
    assert problem(found, "not-frozen").remedy.startswith("--base FILE tells")
    found = verify(state, kwargs={"freeze": True}, trainable=["body.0.weight"])
    assert problems(found) == [("not-trainable", "error")]
    with pytest.raises(CkptError, match="no parameter's name matches --expect-frozen boddy"):
        verify(state, frozen=["boddy.*"])


def test_expectations_hold_against_the_base(verify, nets, tmp_path):
    model = trained(nets["Net"]())
    torch.save(model.state_dict(), "base.pt")
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.head.weight.add_(1)
        tuned.head.bias.add_(1)
        tuned.body[0].bias.add_(1e-6)
    found = verify(tuned.state_dict(), kwargs={"freeze": True}, base="base.pt", frozen=["body.*"])
    assert [(p.code, p.message.rpartition(": ")[2]) for p in found.at_least("warning")] == [
        ("not-frozen", "its bytes differ from the base")
    ]
    assert "body.0.bias" in found.at_least("warning")[0].message


def test_class_that_leaves_freezing_to_the_script(verify, nets):
    """The base shows that the body stayed; that the class builds it trainable is good to know, and no breach."""
    model = trained(nets["Net"]())
    torch.save(model.state_dict(), "base.pt")
    with torch.no_grad():
        model.head.weight.add_(1)
        model.head.bias.add_(1)
    found = verify(model.state_dict(), base="base.pt", frozen=["body.*"], trainable=["head.*"])
    assert problems(found) == [("not-frozen", "warning")]
    assert problem(found, "not-frozen").message == (
        "4 parameters that should be frozen (body.*) are found so, but would not be if trained on: body.0.weight, "
        "body.0.bias, body.2.weight and 1 more: requires_grad=True as the class builds it"
    )


def test_head_of_the_base(verify, nets):
    model = trained(nets["Net"]())
    torch.save(model.state_dict(), "base.pt")
    found = verify(model.state_dict(), base="base.pt")
    assert problems(found) == [("head-untrained", "warning")]
    assert "the very bytes of the base" in problem(found, "head-untrained").message


@pytest.mark.parametrize("outputs", [16, 100, 1000])
def test_initial_linear_layers_are_seen_and_trained_ones_are_not(verify, nets, outputs):
    torch.manual_seed(outputs)
    model = nets["Net"](outputs)
    fresh = verify(model.state_dict(), kwargs={"classes": outputs})
    assert problems(fresh) == [("head-untrained", "warning")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(outputs, (8,))).backward()
        optimizer.step()
    assert problems(verify(model.state_dict(), kwargs={"classes": outputs})) == []


# --- loads, round trip


def test_ties_stay(verify, nets):
    model = nets["Tied"]()
    found = verify(model.state_dict(), "Tied", inputs=["int64:6"])
    assert problems(found) == []
    assert (
        found["loads"].message == "2 tensors assigned from the file; shared as in the class: embed.weight = out.weight"
    )


def test_ties_of_the_file_that_the_class_lacks(verify, nets):
    state = trained(nets["Net"]()).state_dict()
    state["body.2.weight"] = state["body.0.weight"]
    found = verify(state)
    assert problems(found) == [("ties-lost", "warning")]
    assert problem(found, "ties-lost").message.startswith("body.0.weight = body.2.weight share memory in the file")


def test_class_that_changes_what_it_loads(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), "Zeroes")
    assert [code for code, severity in problems(found) if severity == "error"] == ["round-trip-differs"]
    assert "1 tensor would be saved with other values than the file has: head.weight" in str(found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_values_that_are_no_numbers(verify, dtype):
    values = torch.ones(70, 1000, dtype=getattr(torch, dtype))
    values[69, 999] = float("nan")
    values[3, :2] = float("inf")
    torch.save({"weight": values, "bias": torch.ones(70)}, "linear.pt")
    found = verify(None, "torch.nn:Linear", "linear.pt", args=[1000, 70])
    assert "weight (1 NaN and 2 infinite of" in problem(found, "not-finite").message


def test_large_numbers_are_numbers(verify):
    torch.save({"weight": torch.full((9, 1000), 3e38), "bias": torch.ones(9)}, "linear.pt")
    assert "not-finite" not in verify(None, "torch.nn:Linear", "linear.pt", args=[1000, 9]).codes


def test_digest_is_that_of_ckpt_digest(verify, nets):
    from ckpt_tools import open_checkpoint
    from ckpt_tools.analysis.digest import digest

    found = verify(trained(nets["Net"]()).state_dict())
    expected = digest(open_checkpoint("file.pt").model_state_dict().tensors).sha256
    assert found["round-trip"].facts["sha256"] == expected


# --- runs


def test_sample_that_depends_on_its_neighbours(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), "Mixes", inputs=["4"])
    assert problems(found) == [("batch-dependent", "error")]
    assert problems(verify(None, "Mixes", inputs=["4"], batch=3)) == [("batch-dependent", "error")]
    # where the sizes are complete, the first of them may be something else than the batch
    assert problems(verify(None, "Mixes", inputs=["1,4"], batch=0)) == []


def test_model_that_counts_its_calls(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), "Counts", inputs=["3,4"], batch=0)
    assert problems(found) == [("not-deterministic", "warning")]
    assert "by up to 1," in problem(found, "not-deterministic").message


def test_batch_of_two_is_refused(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), "Alone", inputs=["4"])
    assert problems(found) == [("no-batch", "warning")]
    assert problem(found, "no-batch").message == (
        "a batch of two is refused, one alone is not: AssertionError: one at a time"
    )


def test_input_of_the_wrong_size(verify, nets):
    found = verify(trained(nets["Net"]()).state_dict(), inputs=["5"])
    assert problems(found) == [("forward-fails", "error")]
    assert "called with 1×5, the model raised RuntimeError" in problem(found, "forward-fails").message
    assert found["round-trip"].verdict == "passed"


def test_recorded_outputs_hold_for_the_same_weights_alone(verify, nets):
    state = trained(nets["Nested"]()).state_dict()
    found = verify(state, "Nested", inputs=["4"], record="outputs.npz")
    assert problems(found) == []
    with numpy.load("outputs.npz") as recorded:
        assert sorted(recorded.files) == ["input:0", "output:hidden[0]", "output:hidden[1][0]", "output:logits"]
    assert "outputs-equal" in verify(state, "Nested", reference="outputs.npz").codes
    state["net.head.bias"] += 0.01
    found = verify(state, "Nested", reference="outputs.npz")
    assert problems(found) == [("outputs-differ", "error")]
    assert "logits by up to 0.0099" in problem(found, "outputs-differ").message
    assert problems(verify(state, "Nested", reference="outputs.npz", tolerance=0.1)) == []


def test_inputs_from_files(verify, nets):
    state = trained(nets["Nested"]()).state_dict()
    numpy.save("x.npy", numpy.ones((2, 4)))
    found = verify(state, "Nested", inputs=["x.npy"])
    assert found["runs"].facts["inputs"] == [{"shape": [2, 4], "dtype": "float32"}]
    numpy.savez("named.npz", x=numpy.ones((2, 4), "float32"), scale=numpy.full(1, 2, "float32"))
    found = verify(state, "Nested", inputs=["named.npz"])
    assert [i["shape"] for i in found["runs"].facts["inputs"]] == [[2, 4], [1]]
    numpy.save("objects.npy", numpy.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CkptError, match="is no readable array"):
        verify(state, "Nested", inputs=["objects.npy"])


def test_image_as_input(verify):
    images = pytest.importorskip("PIL.Image")
    images.new("RGB", (6, 5), (51, 0, 102)).save("picture.png")
    torch.save({"weight": torch.ones(1, 3, 1, 1), "bias": torch.zeros(1)}, "conv.pt")
    found = verify(None, "torch.nn:Conv2d", "conv.pt", args=[3, 1, 1], inputs=["picture.png"], record="out.npz")
    assert found["runs"].facts["outputs"] == [{"path": "", "shape": [1, 1, 5, 6], "dtype": "float32"}]
    with numpy.load("out.npz") as recorded:
        assert numpy.allclose(recorded["output:"], 0.6)


def test_no_cuda_device_is_an_error_where_it_is_asked_for(verify, nets):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    state = trained(nets["Net"]()).state_dict()
    with pytest.raises(CkptError, match="torch finds no CUDA device"):
        verify(state, inputs=["4"], device="cuda")
    assert verify(state, inputs=["4"], device="auto")["runs"].facts["device"] == "cpu"


# --- resume


def stepped(model, optimizer):
    """*optimizer* after two steps."""
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


def saved(model, optimizer, **more):
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2, **more}


def test_optimizer_over_all(verify, nets):
    model = trained(nets["Net"]())
    for make in (torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adadelta, torch.optim.AdamW):
        found = verify(saved(model, stepped(model, make(model.parameters(), lr=0.01))))
        assert problems(found) == []
        assert "over 6 parameters, all of the model's; epoch 2" in found["resume"].message


def test_optimizer_in_groups_of_weight_decay(verify, nets):
    model = trained(nets["Net"]())
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
    found = verify(saved(model, stepped(model, optimizer)))
    assert found["resume"].facts["optimizers"][0]["over"] == [
        "body.0.weight", "body.2.weight", "head.weight", "body.0.bias", "body.2.bias", "head.bias",
    ]  # fmt: skip
    # which also tells that every one of them is trained, in whatever order the model has them
    assert problems(found) == []
    assert "optimizer-order" in found.codes
    assert problems(verify(None, trainable=["*"])) == []


def test_optimizer_in_groups_of_layers(verify, nets):
    """As YOLOv5 makes them: biases, then weights; every shape is of one group, so that order tells the rest."""
    model = nets["Net"](width=5)
    groups = [[p for n, p in model.named_parameters() if n.endswith(leaf)] for leaf in ("bias", "weight")]
    optimizer = torch.optim.SGD([{"params": group} for group in groups], lr=0.1, momentum=0.9)
    found = verify(saved(model, stepped(model, optimizer)), kwargs={"width": 5})
    over = found["resume"].facts["optimizers"][0]["over"]
    assert over == [f"{layer}.{leaf}" for leaf in ("bias", "weight") for layer in ("body.0", "body.2", "head")]
    # three groups, none of which is all of a kind
    names = ["head.weight", "body.0.bias"], ["body.0.weight", "head.bias"], ["body.2.weight", "body.2.bias"]
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD([{"params": [parameters[n] for n in group]} for group in names], lr=0.1, momentum=0.9)
    found = verify(saved(model, stepped(model, optimizer)), kwargs={"width": 5})
    assert problems(found) == [("optimizer-ambiguous", "warning")]
    assert "which number is whose cannot be told" in problem(found, "optimizer-ambiguous").message
    assert "; sure are only " in problem(found, "optimizer-ambiguous").message


def test_optimizer_with_more_parameters_than_the_model(verify, nets):
    other = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    found = verify(saved(nets["Net"](), torch.optim.SGD(other.parameters(), lr=0.1)))
    assert [code for code, severity in problems(found) if severity == "error"] == ["optimizer-misfit"]


def test_optimizer_with_names(verify, nets):
    model = trained(nets["Net"]())
    optimizer = torch.optim.Adam(list(model.named_parameters())[::-1])
    found = verify(saved(model, stepped(model, optimizer)))
    assert found["resume"].facts["optimizers"][0]["over"] == list(dict(model.named_parameters()))[::-1]
    assert "optimizer-ambiguous" not in found.codes


def test_two_optimizers_of_one_model(verify, nets):
    model = trained(nets["Net"]())
    first = stepped(model, torch.optim.Adam(model.body.parameters()))
    second = stepped(model, torch.optim.Adam(model.head.parameters()))
    found = verify({"model": model.state_dict(), "optimizers": [first.state_dict(), second.state_dict()]})
    assert problems(found) == []
    assert [optimizer["over"] for optimizer in found["resume"].facts["optimizers"]] == [
        ["body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"],
        ["head.weight", "head.bias"],
    ]


def test_optimizer_of_another_model(verify, nets):
    model, other = trained(nets["Net"]()), trained(nets["Net"](width=9))
    found = verify(saved(model, stepped(other, torch.optim.Adam(other.parameters()))))
    assert [code for code, _ in problems(found)][-1] == "optimizer-misfit"


def test_same_shapes_are_ambiguous(verify, nets):
    model = trained(nets["Net"](4))  # every weight is 4×4, every bias 4
    found = verify(saved(model, stepped(model, torch.optim.Adam(model.head.parameters()))), kwargs={"classes": 4})
    assert problems(found) == [("optimizer-ambiguous", "warning"), ("optimizer-filtered", "warning")]
    assert "those from body.0.weight on" in problem(found, "optimizer-ambiguous").message


@pytest.mark.parametrize(("steps", "epoch", "agrees"), [(2, 2, True), (3, 2, True), (9, 2, False)])
def test_scheduler_against_epoch(verify, nets, steps, epoch, agrees):
    model = trained(nets["Net"]())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    stepped(model, optimizer)
    for _ in range(steps):
        scheduler.step()
    found = verify(saved(model, optimizer, scheduler=scheduler.state_dict()))
    assert problems(found) == ([] if agrees else [("scheduler-epoch", "warning")])


def test_scheduler_of_other_groups(verify, nets):
    model = trained(nets["Net"]())
    optimizer = stepped(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict()
    scheduler["base_lrs"] = [0.1, 0.2]
    scheduler["last_epoch"] = 2
    found = verify(saved(model, optimizer, scheduler=scheduler))
    assert problems(found) == [("scheduler-groups", "error")]
