"""The forward pass: torchinfo's numbers where it is right, the right ones where it is not, and no trace left."""

import contextlib
import dataclasses
from collections import namedtuple

import pytest

from ckpt_tools import CkptError, open_checkpoint

torch = pytest.importorskip("torch")
nn = torch.nn
F = nn.functional
forward = pytest.importorskip("ckpt_tools.runtime.forward")
locate = pytest.importorskip("ckpt_tools.runtime.locate").locate
forward_summary, InputSpec = forward.forward_summary, forward.InputSpec


def sizes(*texts):
    return [InputSpec.parse(text) for text in texts]


def shapes(summary):
    return [(layer.name, *(output.shape for output in layer.outputs)) for layer in summary.layers if layer.called]


def mult_adds(model, *inputs, **options):
    return forward_summary(model, sizes(*inputs), **options).mult_adds


def assert_columns_add_up(summary):
    for column in ("parameters", "mult_adds", "activation_bytes"):
        assert sum(getattr(layer, column) for layer in summary.layers) == getattr(summary, column)


# --- beside torchinfo


def by_torchinfo(name):
    torchinfo = pytest.importorskip("torchinfo")
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    return torchinfo.summary(model, input_data=torch.zeros(1, 3, 224, 224, device="meta"), verbose=0)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet", "vgg11", "resnet18", "resnet50", "mobilenet_v3_small", "densenet121", "squeezenet1_0",
        "efficientnet_b0", "shufflenet_v2_x1_0", "vit_b_16",
    ],
)  # fmt: skip
def test_torchvision_models_as_torchinfo_has_them(name):
    expected = by_torchinfo(name)
    found = forward_summary(locate(f"torchvision:{name}"), sizes("3,224,224"))
    assert (found.ran_on, found.why_not_meta) == ("meta", "")
    assert found.parameters == expected.total_params
    assert found.trainable_parameters == expected.trainable_params
    assert [(layer.class_name, list(layer.outputs[0].shape)) for layer in found.layers if layer.called] == [
        (layer.class_name, layer.output_size) for layer in expected.summary_list if layer.executed
    ]
    assert_columns_add_up(found)
    if name != "vit_b_16":
        assert found.mult_adds == expected.total_mult_adds


def test_multiply_adds_of_a_vision_transformer():
    """torchinfo has 173,232,616: one token of each Linear, and nothing of the attention."""
    found = forward_summary(locate("torchvision:vit_b_16"), sizes("3,224,224"))
    tokens, width, hidden, patches = 197, 768, 3072, 196
    norm = 2 * width
    attention = tokens * (width + 1) * 3 * width + 2 * tokens * tokens * width + tokens * (width + 1) * width
    mlp = tokens * ((width + 1) * hidden + (hidden + 1) * width)
    expected = patches * (3 * 16 * 16 + 1) * width + 12 * (2 * norm + attention + mlp) + norm + (width + 1) * 1000
    assert found.mult_adds == expected == 17_580_358_120
    first = next(layer for layer in found.layers if layer.class_name == "MultiheadAttention")
    assert first.mult_adds == attention


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "convnext_tiny", "regnet_y_400mf", "maxvit_t"])
def test_multiply_adds_are_near_those_that_torchvision_notes(name):
    """It notes billions of products (``_ops``), rounded, without biases and normalizations."""
    models = pytest.importorskip("torchvision").models
    noted = models.get_model_weights(name).DEFAULT.meta["_ops"]
    found = forward_summary(locate(f"torchvision:{name}"), sizes("3,224,224")).mult_adds / 1e9
    assert found == pytest.approx(noted, rel=0.015)


def test_a_frozen_backbone():
    model = locate("torchvision:resnet18", [], {"num_classes": 2})
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    found = forward_summary(model, sizes("3,64,64"))
    assert (found.parameters, found.trainable_parameters) == (11_177_538, 1_026)


class Shared(nn.Module):
    """A block in two places, called three times, and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.first = nn.Sequential(block)
        self.second = nn.Sequential(block)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.second(self.first(self.embed(tokens)))
        return self.head(self.second(x))


def test_shared_modules_count_once():
    """torchinfo counts the tied weight twice, and the block's again for each Sequential that it is in."""
    torchinfo = pytest.importorskip("torchinfo")
    model = Shared()
    found = forward_summary(model, sizes("int64:5"))
    assert found.parameters == sum(p.numel() for p in model.parameters()) == 10 * 4 + 4 * 4 + 4
    assert torchinfo.summary(model, input_data=torch.zeros(1, 5, dtype=torch.int64), verbose=0).total_params > 60
    assert found.mult_adds == 5 * (3 * (4 * 4 + 4) + 10 * 4)
    assert_columns_add_up(found)
    assert [(layer.name, layer.parameters, layer.shared_parameters, layer.mult_adds) for layer in found.layers] == [
        ("", 0, 0, 0),
        ("embed", 40, 0, 0),
        ("first", 0, 0, 0),
        ("first.0", 0, 0, 0),
        ("first.0.0", 20, 0, 100),
        ("first.0.1", 0, 0, 0),
        *[("second", 0, 0, 0), ("first.0", 0, 0, 0), ("first.0.0", 0, 20, 100), ("first.0.1", 0, 0, 0)] * 2,
        ("head", 0, 40, 200),
    ]


# --- multiply-adds


class Call(nn.Module):
    """A function as a model, with what it needs in *parts*."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), ["4,9,9"], 4 * 4 * (6 * 2 * 9 + 6)),
        (nn.Conv2d(4, 6, 3, padding="same", bias=False), ["4,9,9"], 9 * 9 * 6 * 4 * 9),
        (nn.Conv1d(2, 3, 5), ["2,9"], 5 * (3 * 2 * 5 + 3)),
        (nn.Conv3d(1, 2, 2), ["1,3,3,3"], 8 * (2 * 8 + 2)),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), ["3,4,4"], 16 * 3 * 5 * 4 + 64 * 5),
        (nn.Linear(8, 5), ["8"], 8 * 5 + 5),
        (nn.Linear(8, 5), ["3,7,8"], 21 * (8 * 5 + 5)),
        (nn.Linear(8, 5, bias=False), ["8"], 40),
        (nn.Bilinear(2, 3, 4), ["2", "3"], 0),
        (nn.BatchNorm2d(3), ["3,4,4"], 6),
        (nn.BatchNorm2d(3, affine=False), ["3,4,4"], 0),
        (nn.InstanceNorm2d(3, affine=True), ["3,4,4"], 6),
        (nn.GroupNorm(1, 4), ["4,5"], 8),
        (nn.LayerNorm(4), ["5,4"], 8),
        (nn.RMSNorm(4), ["5,4"], 4),
        (nn.PReLU(), ["5"], 1),
        (nn.Embedding(10, 4), ["int64:6"], 0),
        (nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True), ["7,3"],
         7 * (2 * 4 * 5 * (3 + 5 + 2) + 2 * 4 * 5 * (10 + 5 + 2))),
        (nn.GRU(3, 5, batch_first=True), ["7,3"], 7 * 3 * 5 * (3 + 5 + 2)),
        (nn.RNN(3, 5, bias=False, batch_first=True), ["7,3"], 7 * 5 * (3 + 5)),
        (nn.GRUCell(3, 5), ["3"], 3 * 5 * (3 + 5 + 2)),
        (Call(lambda m, x: x @ x.mT), ["4,6"], 4 * 4 * 6),
        (Call(lambda m, x: torch.einsum("bij,bkj->bik", x, x)), ["4,6"], 4 * 4 * 6),
        (Call(lambda m, x: F.linear(x.transpose(1, 2), m.w, m.b), w=nn.Parameter(torch.zeros(3, 4)),
              b=nn.Parameter(torch.zeros(3))), ["4,6"], 6 * (3 * 4 + 3)),
        (Call(lambda m, x: torch.addmm(m.b, x, m.w), w=nn.Parameter(torch.zeros(4, 3)),
              b=nn.Parameter(torch.zeros(3))), ["4"], 4 * 3 + 3),
        (Call(lambda m, x: F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3], is_causal=True)), ["2,5,4"],
         2 * 5 * 3 * (4 + 4)),
        (nn.MultiheadAttention(8, 2, batch_first=True), ["5,8", "6,8", "6,8"],
         5 * 72 + 6 * 72 * 2 + 2 * 5 * 6 * 8 + 5 * 72),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ["5,8"],
         5 * 72 * 3 + 2 * 5 * 5 * 8 + 5 * 72 + 5 * (9 * 16 + 17 * 8) + 2 * 16),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 5)), ["8"], 45),
        (nn.utils.spectral_norm(nn.Conv2d(1, 2, 3)), ["1,3,3"], 20 + 20),
    ],
)  # fmt: skip
def test_multiply_adds_by_operator(model, inputs, expected):
    found = forward_summary(model, sizes(*inputs))
    assert (found.mult_adds, found.ran_on) == (expected, "meta")
    # each is of the batch, except what is done to weights alone
    if not any("weight_u" in name for name, _ in model.named_buffers()):
        assert mult_adds(model, *inputs, batch=3) == 3 * expected


def test_multiply_adds_of_a_packed_sequence():
    packed = Call(
        lambda m, x: m.lstm(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True))[0].data,
        lstm=nn.LSTM(3, 5, batch_first=True),
    )
    found = forward_summary(packed, sizes("3,3"), batch=2)
    assert (found.ran_on, found.mult_adds) == ("cpu", 5 * 4 * 5 * (3 + 5 + 2))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.LSTM(3, 5, 2, bidirectional=True), ["7,3"]),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), ["5,8"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(144, 2)),
         ["3,8,8"]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_cpu_tells_what_meta_tells(model, inputs):
    def needs_values(module, *tensors):
        assert tensors[0].sum().item() != float("inf")
        return module.model(*tensors)

    on_meta = forward_summary(Call(lambda m, *t: m.model(*t), model=model), sizes(*inputs))
    on_cpu = forward_summary(Call(needs_values, model=model), sizes(*inputs))
    assert (on_meta.ran_on, on_cpu.ran_on) == ("meta", "cpu")
    assert on_meta.layers == on_cpu.layers
    assert_columns_add_up(on_cpu)


# --- outputs and activations


def test_outputs_of_any_make():
    Pair = namedtuple("Pair", "left right")

    @dataclasses.dataclass
    class Both:
        logits: object
        hidden: object = None

    def function(module, x):
        half = x[:, :1]
        return {"a": x, "b": [half, (x, None)], "c": Pair(half, "text"), "d": Both(half)}

    (layer,) = forward_summary(Call(function), sizes("3")).layers
    assert [(output.path, output.shape, output.dtype) for output in layer.outputs] == [
        ("a", (1, 3), "float32"),
        ("b[0]", (1, 1), "float32"),
        ("b[1][0]", (1, 3), "float32"),
        ("c.left", (1, 1), "float32"),
        ("d.logits", (1, 1), "float32"),
    ]
    (layer,) = forward_summary(Call(lambda m, x: None), sizes("3")).layers
    assert layer.outputs == ()


def test_torchvision_outputs():
    pytest.importorskip("torchvision")
    found = forward_summary(locate("torchvision:lraspp_mobilenet_v3_large"), sizes("3,64,64"))
    assert [(output.path, output.shape) for output in found.layers[0].outputs] == [("out", (1, 21, 64, 64))]


def test_activations_count_memory_once():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 4)), nn.Identity(), nn.Dropout(), nn.ReLU()
    )
    found = forward_summary(model, sizes("4"), batch=2)
    assert [layer.activation_bytes for layer in found.layers] == [0, 2 * 8 * 4, 0, 0, 0, 0, 2 * 8 * 4]
    assert found.activation_bytes == 128
    # the input is none, nor is a parameter; a block's own sum is one
    assert forward_summary(nn.Identity(), sizes("4")).activation_bytes == 0
    assert forward_summary(Call(lambda m, x: m.w, w=nn.Parameter(torch.zeros(3))), sizes("4")).activation_bytes == 0
    found = forward_summary(Call(lambda m, x: x + m.inner(x), inner=nn.Linear(4, 4)), sizes("4"))
    assert [layer.activation_bytes for layer in found.layers] == [16, 16]
    assert forward_summary(nn.Linear(4, 8).half(), sizes("4")).activation_bytes == 16


def test_parameters_of_modules_that_are_not_called():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    found = forward_summary(
        Call(lambda m, x: m.attention(x, x, x)[0], attention=model, spare=nn.Linear(2, 2)), sizes("5,8")
    )
    assert [(layer.name, layer.depth, layer.parameters, layer.called) for layer in found.layers] == [
        ("", 0, 0, True),
        ("spare", 1, 6, False),
        ("attention", 1, 3 * 72, True),
        ("attention.out_proj", 2, 72, False),
    ]


# --- inputs


def test_input_specifications():
    assert InputSpec.parse("3,224,224") == InputSpec((3, 224, 224))
    assert InputSpec.parse("int64:128") == InputSpec((128,), "int64")
    for text in ("", "3,", "3x224", "-1", "float32:", "3,224,224,", "float32:3:4"):
        with pytest.raises(CkptError, match="is no input"):
            InputSpec.parse(text)
    for text in ("float33:3", "nn:3"):
        with pytest.raises(CkptError, match="torch has no type"):
            InputSpec.parse(text)


def test_inputs_are_as_asked_for():
    seen = []
    model = Call(
        lambda m, *inputs: seen.append([(tuple(i.shape), i.dtype) for i in inputs]), w=nn.Linear(2, 2).bfloat16()
    )
    forward_summary(model, sizes("3,4", "int64:5", "float32:2", "bool:1"), batch=2)
    expected = [((2, 3, 4), torch.bfloat16), ((2, 5), torch.int64), ((2, 2), torch.float32), ((2, 1), torch.bool)]
    assert seen == [expected]
    found = forward_summary(nn.Linear(4, 2), sizes("4"), batch=None)
    assert (found.inputs[0].shape, found.layers[0].outputs[0].shape) == ((4,), (2,))


def test_integers_are_zeros_and_floats_are_not():
    seen = []

    def function(module, tokens, x):
        seen.append((tokens.tolist(), x.tolist()))
        return module.embed(tokens)

    for _ in range(2):
        forward_summary(Call(function, embed=nn.Embedding(1, 2)), sizes("int64:2", "2"))
    assert seen[0] == seen[1]
    assert seen[0][0] == [[0, 0]]
    assert all(0 < value < 1 for value in seen[0][1][0])


# --- where values are needed


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.small = nn.Linear(2, 3)
        self.large = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("limit", torch.tensor(5.0), persistent=False)

    def forward(self, x):
        x = self.norm(x)
        return self.large(x) if self.small(x).sum() > self.limit else self.small(x)


def checkpoint_of(tmp_path, bias):
    model = Branches()
    nn.init.constant_(model.small.bias, bias)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    return open_checkpoint(tmp_path / "m.pt").model_state_dict()


def test_control_flow_follows_the_files_weights(tmp_path):
    (tmp_path / "net.py").write_text("from tests.runtime.test_forward import Branches\nnet = Branches\n")
    for bias, last in ((100.0, ("large", (1, 4))), (-100.0, ("small", (1, 3)))):
        found = forward_summary(locate(f"{tmp_path}/net.py:net"), sizes("2"), state_dict=checkpoint_of(tmp_path, bias))
        assert found.ran_on == "cpu"
        assert found.why_not_meta.startswith("the forward pass on meta fails in the model (Branches): ")
        assert shapes(found)[-1] == last


def test_without_weights_there_is_no_such_run(tmp_path):
    with torch.device("meta"):
        model = Branches()
    with pytest.raises(CkptError, match=r"the forward pass on meta fails in the model \(Branches\)"):
        forward_summary(model, sizes("2"))
    entries = {"small.weight": torch.zeros(3, 2), "norm.weight": torch.zeros(7)}
    torch.save(entries, tmp_path / "other.pt")
    other = open_checkpoint(tmp_path / "other.pt").model_state_dict()
    with pytest.raises(CkptError) as caught:
        forward_summary(model, sizes("2"), state_dict=other)
    assert caught.value.problem.startswith(
        "the model must run with its weights, but the file does not have small.bias, large.weight, large.bias "
        "and 3 more as the class does; without: the forward pass on meta fails in the model (Branches): "
    )


def test_a_detector_runs_on_the_cpu(tmp_path):
    pytest.importorskip("torchvision")
    options = {"min_size": 64, "max_size": 64, "rpn_pre_nms_top_n_test": 20}
    model = locate("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", [], options)
    weights = {key: torch.full_like(value, 0.01, device="cpu") for key, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "m.pt")
    state_dict = open_checkpoint(tmp_path / "m.pt").model_state_dict()
    found = forward_summary(model, sizes("3,64,64"), state_dict=state_dict)
    assert found.ran_on == "cpu"
    assert {output.path for output in found.layers[0].outputs} == {"[0].boxes", "[0].scores", "[0].labels"}
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert_columns_add_up(found)


def test_what_cannot_run_says_where(tmp_path):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 2), nn.Linear(3, 2)))
    with pytest.raises(CkptError) as caught:
        forward_summary(model, sizes("4"))
    assert caught.value.problem.startswith(
        "the forward pass on cpu fails in 0.1 (Linear): RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    )
    assert "\n" not in caught.value.problem
    with pytest.raises(CkptError, match=r"fails in the model \(Linear\): .*positional arguments"):
        forward_summary(nn.Linear(2, 2), sizes("2", "2"))


def test_a_call_that_raised_inside_and_was_caught():
    def function(module, x):
        with contextlib.suppress(RuntimeError):
            module.wrong(x)
        return module.right(x)

    found = forward_summary(Call(function, wrong=nn.Linear(9, 9), right=nn.Linear(2, 3)), sizes("2"))
    assert shapes(found) == [("", (1, 3)), ("wrong",), ("right", (1, 3))]


# --- the model is left as it was


class Prints(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout()
        self.seen = []
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        print("running", self.training)
        self.calls += 1
        self.last = x
        self.seen.append(x)
        torch.rand(3)
        return self.drop(self.norm(x)) if x.sum() < 100 else x


def test_no_trace_is_left(capsys):
    model = Prints().train()
    model.norm.eval()
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = [{k: v for k, v in vars(m).items() if k[0] != "_"} for m in model.modules()]
    numbers = torch.get_rng_state()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    torch.backends.mha.set_fastpath_enabled(True)
    found = forward_summary(model, sizes("2"))
    assert found.ran_on == "cpu"
    assert [module.training for module in model.modules()] == [True, False, True]
    assert [{k: v for k, v in vars(m).items() if k[0] != "_"} for m in model.modules()] == attributes
    assert model.seen == []
    assert not hasattr(model, "last")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert nn.modules.module._global_forward_hooks == nn.modules.module._global_forward_pre_hooks == {}
    assert torch.equal(torch.get_rng_state(), numbers)
    assert torch.backends.mha.get_fastpath_enabled()
    assert not torch.is_inference_mode_enabled()
    captured = capsys.readouterr()
    assert (captured.out, set(captured.err.splitlines())) == ("", {"running False"})


def test_models_that_deepcopy_refuses_to_copy():
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(4, 3))  # its weight is no leaf
    found = forward_summary(model, sizes("4"))
    assert (found.ran_on, found.mult_adds, found.parameters) == ("meta", 15, 12 + 3 + 3)
    assert forward_summary(nn.Sequential(nn.LazyLinear(3)), sizes("4")).parameters == 15

    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("it is mine")

    with pytest.raises(CkptError, match="the model cannot be copied: TypeError: it is mine"):
        forward_summary(Locked(2, 2), sizes("2"))
