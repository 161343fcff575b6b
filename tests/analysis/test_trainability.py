"""Verdicts on files that torch writes here, for each source of evidence and for sources that disagree."""

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.holding import holding
from ckpt_tools.analysis.summary import subject_of
from ckpt_tools.analysis.trainability import resembles_requires_grad
from ckpt_tools.checkpoint import Optimizer, ParamGroup, TensorInfo
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError

torch = pytest.importorskip("torch")
nn = torch.nn


def net(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes))


def step(model, optimizer):
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()


def verdicts(path, **options):
    trust = subject_of(open_checkpoint(path), **options).trainability
    return {name: judgement.verdict for name, judgement in trust.parameters.items()}, trust


def save(tmp_path, value, name="m.pt"):
    path = tmp_path / name
    torch.save(value, path)
    return path


FROZEN_BACKBONE = {
    "0.weight": "frozen",
    "0.bias": "frozen",
    "1.weight": "frozen",
    "1.bias": "frozen",
    "4.weight": "trainable",
    "4.bias": "trainable",
}


def freeze_backbone(model):
    for layer in model[:4]:
        layer.requires_grad_(False)
    return model


def test_recorded_in_a_full_model(tmp_path):
    found, trust = verdicts(save(tmp_path, freeze_backbone(net())))
    assert found == FROZEN_BACKBONE
    assert {j.basis.source for j in trust.parameters.values()} == {"recorded"}
    assert {j.basis.confidence for j in trust.parameters.values()} == {"certain"}


def test_recorded_by_parameters_in_a_dict(tmp_path):
    found, _ = verdicts(save(tmp_path, dict(freeze_backbone(net()).named_parameters())))
    assert found == FROZEN_BACKBONE


def test_a_bare_state_dict_is_unknown(tmp_path):
    found, _ = verdicts(save(tmp_path, freeze_backbone(net()).state_dict()))
    assert set(found.values()) == {"unknown"}
    assert list(found) == list(FROZEN_BACKBONE)  # BatchNorm's buffers are no parameters


def test_state_keeping_optimizer_over_all_parameters(tmp_path):
    model = freeze_backbone(net())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    step(model, optimizer)
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    assert found == FROZEN_BACKBONE
    assert trust.parameters["4.bias"].basis.reason == "the optimizer stepped it (lr 0.25)"
    frozen = trust.parameters["0.weight"].basis
    assert (frozen.confidence, frozen.source) == ("unclear", "optimizer")
    assert "without state: frozen, or it never received a gradient" in frozen.reason


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (10**400, " (lr an integer beyond 64 bits)"),
        (float("inf"), " (lr inf)"),
        (2, " (lr 2)"),
        ([0.5], ""),
        (torch.tensor(0.5), ""),
        (None, ""),
    ],
)
def test_a_rate_may_be_anything(tmp_path, rate, told):
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = rate
    _, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": state}))
    assert trust.parameters["4.bias"].basis.reason == f"the optimizer stepped it{told}"


def test_filtered_optimizer(tmp_path):
    model = freeze_backbone(net())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    step(model, optimizer)
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    assert found == FROZEN_BACKBONE
    assert trust.parameters["0.weight"].basis.reason == "it is not in the optimizer"


def test_plain_sgd_tells_nothing(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model, optimizer)
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    assert set(found.values()) == {"unknown"}
    assert "plain SGD" in trust.parameters["0.weight"].basis.reason


def test_names_recorded_by_the_optimizer(tmp_path):
    model = freeze_backbone(net())
    # in an order that positions would get wrong
    named = list(model.named_parameters())[::-1]
    optimizer = torch.optim.Adam(named)
    step(model, optimizer)
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    assert found == FROZEN_BACKBONE
    assert trust.parameters["4.weight"].basis.confidence == "certain"


def test_shapes_that_leave_doubt_are_unknown(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 2)})
    optimizer = torch.optim.Adam([*model["b"].parameters(), *model["c"].parameters()])
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    assert found == {
        "a.weight": "unknown",
        "a.bias": "unknown",
        "b.weight": "unknown",
        "b.bias": "unknown",
        "c.weight": "trainable",
        "c.bias": "trainable",
    }
    assert "for 4 parameters order and shapes leave doubt" in trust.notes


@pytest.mark.parametrize("head", [lambda: nn.Linear(16, 2), lambda: nn.Sequential(nn.Linear(16, 5), nn.Linear(5, 2))])
def test_optimizer_bound_before_the_head_was_replaced(tmp_path, head):
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    model[4] = head()
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    heads = [name for name in found if name.startswith("4")]
    assert {found[name] for name in heads} == {"frozen"}
    assert {trust.parameters[name].basis.reason for name in heads} == {"it is not in the optimizer"}
    assert {found[name] for name in found if name not in heads} == {"trainable"}
    assert "bound before part of the model was replaced" in trust.notes[0]
    assert "4 3×16, 5 3 " in trust.notes[0]


class Block(nn.Module):
    """Attention and MLP of one width, the names and shapes of a small transformer."""

    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def trained(tmp_path, groups, model=None, optimizer=torch.optim.AdamW, freeze=(), replace=None):
    """What `verdicts` says of a transformer, saved after a step of an optimizer over *groups* of its parameters."""
    model = model or Transformer()
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(freeze)) if freeze else False:
            parameter.requires_grad = False
    made = optimizer(groups(model))
    model(torch.randn(2, 4, 3)).square().sum().backward()
    made.step()
    if replace is not None:
        replace(model)
    return verdicts(save(tmp_path, {"model": model.state_dict(), "optimizer": made.state_dict()}))


def by_decay(model, rates=(0.5, 0.25)):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "lr": rates[0]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0, "lr": rates[1]},
    ]


def by_norm(model):
    """As transformers has it: biases and what is in a norm are not decayed, cls is."""
    no_decay = [p for n, p in model.named_parameters() if "norm" in n or n.endswith("bias")]
    return [{"params": [p for p in model.parameters() if all(p is not q for q in no_decay)]}, {"params": no_decay}]


def by_layer(model):
    """As YOLOv5 has it: biases, then weights, then those of norms, whatever module they are in."""
    modules = list(model.modules())
    norms = [m.weight for m in modules if isinstance(m, nn.LayerNorm)]
    weights = [m.weight for m in modules if isinstance(m, nn.Linear)]
    return [{"params": [m.bias for m in modules if hasattr(m, "bias")]}, {"params": [*weights]}, {"params": norms},
            {"params": [model.cls]}]  # fmt: skip


@pytest.mark.parametrize("groups", [by_decay, by_norm, by_layer, lambda m: [*m.head.parameters(), *by_rest(m)]])
def test_groups_in_an_order_that_is_not_the_models(tmp_path, groups):
    found, trust = trained(tmp_path, groups)
    assert set(found.values()) == {"trainable"}
    assert trust.notes[0].startswith("the optimizer holds 31 of 31 parameters, matched by ")
    # Adam's state of a frozen part is missing, and it is missing for the right ones
    found, _ = trained(tmp_path, groups, freeze=["blocks.0"])
    told = {name: verdict for name, verdict in found.items() if verdict != "unknown"}
    assert {name for name, verdict in told.items() if verdict == "frozen"} <= {n for n in found if "blocks.0" in n}
    assert {"head.weight", "head.bias", "embed.weight", "cls"} <= {n for n, v in told.items() if v == "trainable"}


def by_rest(model):
    return [p for n, p in model.named_parameters() if not n.startswith("head")]


def test_weight_decay_split_tells_each_rate(tmp_path):
    _, trust = trained(tmp_path, by_decay)
    reasons = {name: j.basis.reason for name, j in trust.parameters.items()}
    assert reasons["blocks.1.qkv.weight"] == "the optimizer stepped it (lr 0.5)"
    assert reasons["blocks.1.norm1.weight"] == "the optimizer stepped it (lr 0.25)"
    assert {j.basis.confidence for j in trust.parameters.values()} == {"likely"}


def test_weight_decay_split_with_a_frozen_backbone(tmp_path):
    """Only the head has state: the rest stands in the groups for nothing, and the sizes of these tell."""
    model = Transformer()
    every = [{"params": [p for p in model.parameters() if p.dim() > 1]},
             {"params": [p for p in model.parameters() if p.dim() <= 1]}]  # fmt: skip
    found, trust = trained(tmp_path, lambda _: every, model, freeze=["cls", "embed", "blocks", "norm"])
    assert {name for name, verdict in found.items() if verdict == "trainable"} == {"head.weight", "head.bias"}
    assert {found[name] for name in found if not name.startswith("head")} == {"frozen"}
    assert trust.notes == (
        "the optimizer holds 31 of 31 parameters, matched by shapes: matrices, then vectors (as weight decay is split)",
    )


def test_weight_decay_split_over_what_is_filtered(tmp_path):
    found, _ = trained(tmp_path, by_decay, freeze=["cls", "embed", "blocks.0", "blocks.1", "norm"])
    assert {name for name, verdict in found.items() if verdict == "trainable"} == {"head.weight", "head.bias"}
    assert {found[name] for name in found if not name.startswith("head")} == {"frozen"}


def test_same_shapes_in_filtered_groups_stay_open(tmp_path):
    """Of two equal blocks one is in the optimizer: nothing in the file says which."""
    found, trust = trained(tmp_path, by_decay, freeze=["cls", "embed", "blocks.0", "norm"])
    assert {found[name] for name in found if name.startswith(("blocks", "norm"))} == {"unknown"}
    assert {found["head.weight"], found["head.bias"]} == {"trainable"}
    assert {found["cls"], found["embed.weight"]} == {"frozen"}
    assert "order and shapes leave doubt" in trust.notes[1]


def test_flags_in_the_file_tell_which_of_the_same_shape(tmp_path):
    """With parameters pickled whole, those with requires_grad are what people filter by."""
    model = Transformer()
    model.blocks[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(by_decay(model))
    model(torch.randn(2, 4, 3)).square().sum().backward()
    optimizer.step()
    found, trust = verdicts(save(tmp_path, {"model": model, "optimizer": optimizer.state_dict()}))
    of_optimizer = {n: [e.verdict for e in j.evidence if e.source == "optimizer"] for n, j in trust.parameters.items()}
    assert {v for n, v in found.items() if "blocks.0" in n} == {"frozen"}
    assert all(of_optimizer[name] == [found[name]] for name in found)
    assert not any(j.contradictions for j in trust.parameters.values())


def test_groups_bound_before_the_head_was_replaced(tmp_path):
    def replace(model):
        model.head = nn.Linear(8, 2)

    found, trust = trained(tmp_path, by_decay, replace=replace)
    assert {name for name, verdict in found.items() if verdict != "trainable"} == {"head.weight", "head.bias"}
    assert found["head.weight"] == found["head.bias"] == "frozen"
    assert trust.notes[0].startswith("the optimizer was bound before part of the model was replaced")
    assert "its parameters 10 5×8, 30 5 are of no layer there is now" in trust.notes[0]


def test_recorded_names_do_not_hide_a_replaced_head(tmp_path):
    def replace(model):
        model.head = nn.Linear(8, 2)

    found, trust = trained(tmp_path, lambda m: list(m.named_parameters()), replace=replace)
    assert {name for name, verdict in found.items() if verdict == "frozen"} == {"head.weight", "head.bias"}
    assert "by the names that it records its parameters 29 5×8, 30 5 are of no layer there is now" in trust.notes[0]


@pytest.mark.parametrize(("ours", "theirs"), [("module.", ""), ("", "module."), ("", "_orig_mod.module.")])
def test_recorded_names_of_a_wrapped_model(tmp_path, ours, theirs):
    model = Transformer()
    optimizer = torch.optim.Adam(
        [(theirs + n, p) for n, p in reversed(list(model.named_parameters())) if "cls" not in n]
    )
    model(torch.randn(2, 4, 3)).square().sum().backward()
    optimizer.step()
    state = {ours + name: tensor for name, tensor in model.state_dict().items()}
    found, trust = verdicts(save(tmp_path, {"model": state, "optimizer": optimizer.state_dict()}))
    assert {name for name, verdict in found.items() if verdict == "frozen"} == {f"{ours}cls"}
    assert {j.basis.confidence for j in trust.parameters.values()} == {"certain"}


def test_an_optimizer_of_another_model(tmp_path):
    model, other = net(), nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    assert set(found.values()) == {"unknown"}
    assert trust.notes == ("the optimizer holds 8 parameters, the model has 6: it is of another model",)


def test_groups_in_no_order_at_all(tmp_path):
    """Shapes that one parameter has alone still tell; and all that are in the optimizer were stepped."""
    found, trust = trained(tmp_path, lambda m: [p for _, p in sorted(m.named_parameters(), key=lambda x: x[0][::-1])])
    assert set(found.values()) == {"trainable"}
    assert trust.notes[0] == "the optimizer holds 31 of 31 parameters, matched by shapes alone"


def test_groups_without_end_are_not_worked_through():
    many = 2000
    order = [(7 * index) % many for index in range(many)]
    groups = tuple(ParamGroup((index,), None, {}) for index in order)
    state = {index: {"exp_avg": TensorInfo("exp_avg", BY_NAME["float32"], (index + 1,))} for index in order}
    found = holding(Optimizer((), groups, state), {f"p{index}": (index + 1,) for index in range(many)})
    assert not found.fits
    assert {place.held for place in found.places.values()} == {None}
    found = holding(Optimizer((), groups[:100], state), {f"p{index}": (index + 1,) for index in order[50:150]})
    assert [place.held for place in found.places.values()] == [True] * 50 + [False] * 50
    assert len(found.stale) == 50


def test_tied_weights_count_once(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "mix": nn.Linear(4, 4), "out": nn.Linear(4, 6)})
    model["out"].weight = model["embed"].weight
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()}))
    assert found == dict.fromkeys(["embed.weight", "mix.weight", "mix.bias", "out.weight", "out.bias"], "trainable")
    assert trust.notes == ("the optimizer holds 4 of 4 parameters, matched by order and shapes",)


@pytest.mark.parametrize("kind", ["Adafactor", "Adagrad", "RMSprop", "Rprop", "NAdam", "Adadelta", "ASGD"])
def test_optimizers_whose_state_is_of_other_shapes_or_there_before_the_first_step(tmp_path, kind):
    found, _ = trained(
        tmp_path, lambda m: m.parameters(), optimizer=getattr(torch.optim, kind), freeze=["cls", "embed", "blocks.0"]
    )
    assert {n for n, v in found.items() if v == "frozen"} == {
        n for n in found if n.startswith(("cls", "embed", "blocks.0"))
    }
    assert set(found.values()) == {"frozen", "trainable"}


def test_a_class_that_freezes_nothing_does_not_outweigh_the_optimizer(tmp_path):
    model = freeze_backbone(net())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    step(model, optimizer)
    path = save(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()})
    found, trust = verdicts(path, from_class=dict.fromkeys(FROZEN_BACKBONE, True))
    assert found == FROZEN_BACKBONE
    assert not any(judgement.contradictions for judgement in trust.parameters.values())
    # one that freezes something means what it does not freeze
    found, trust = verdicts(path, from_class={**dict.fromkeys(FROZEN_BACKBONE, True), "0.weight": False})
    assert found == {**dict.fromkeys(FROZEN_BACKBONE, "trainable"), "0.weight": "frozen"}
    assert trust.parameters["1.bias"].contradictions == (
        "requires_grad=True as the class builds it, but it is not in the optimizer",
    )


def test_base_compares_bytes_and_finds_drifted_buffers(tmp_path):
    model = net()
    base = save(tmp_path, model.state_dict(), "base.pt")
    with torch.no_grad():
        model(torch.randn(4, 3, 4, 4))  # moves BatchNorm's statistics
        model[4].weight[0, 0] += 1
    found, trust = verdicts(save(tmp_path, model.state_dict()), base=open_checkpoint(base))
    assert found == {**dict.fromkeys(FROZEN_BACKBONE, "frozen"), "4.weight": "trainable"}
    assert trust.drifted_buffers == ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def test_what_has_no_bytes_is_not_said_to_differ(tmp_path):
    base = save(tmp_path, {"w": torch.zeros(3, device="meta"), "v": torch.zeros(2)}, "base.pt")
    found, trust = verdicts(save(tmp_path, {"w": torch.zeros(3), "v": torch.ones(2)}), base=open_checkpoint(base))
    assert found == {"w": "unknown", "v": "trainable"}
    assert "cannot be compared" in trust.parameters["w"].basis.reason


def test_base_behind_a_wrapper_prefix(tmp_path):
    model = net()
    base = save(tmp_path, nn.DataParallel(model).state_dict(), "base.pt")
    found, _ = verdicts(save(tmp_path, model.state_dict()), base=open_checkpoint(base))
    assert set(found.values()) == {"frozen"}


def test_a_flag_that_the_bytes_contradict(tmp_path):
    model = freeze_backbone(net())
    base = save(tmp_path, model.state_dict(), "base.pt")
    with torch.no_grad():
        model[0].weight += 1
    found, trust = verdicts(save(tmp_path, model), base=open_checkpoint(base))
    assert found["0.weight"] == "frozen"  # the flag is what autograd obeys
    assert trust.parameters["0.weight"].contradictions == (
        "requires_grad=False in the file, but its bytes differ from the base",
    )
    assert trust.parameters["4.weight"].contradictions == (
        "requires_grad=True in the file, but its bytes are those of the base",
    )
    assert trust.parameters["0.bias"].contradictions == ()


def test_a_flag_that_the_optimizer_contradicts(tmp_path):
    model = net()
    optimizer = torch.optim.Adam(model[4].parameters())
    step(model, optimizer)
    _, trust = verdicts(save(tmp_path, {"model": model, "optimizer": optimizer.state_dict()}))
    assert trust.parameters["0.weight"].contradictions == (
        "requires_grad=True in the file, but it is not in the optimizer",
    )
    assert trust.parameters["4.weight"].contradictions == ()


def test_two_optimizers_decide_nothing(tmp_path):
    model = net()
    states = [torch.optim.SGD(model.parameters(), lr=0.1).state_dict() for _ in range(2)]
    found, trust = verdicts(save(tmp_path, {"m": model.state_dict(), "g": states[0], "d": states[1]}))
    assert set(found.values()) == {"unknown"}
    assert trust.notes == ("the file holds 2 optimizers; which one trains this model is not recorded",)


def test_typo_and_flag_on_a_module_are_pointed_out(tmp_path):
    model = net()
    model.requires_grad_(False)
    for parameter in model[4].parameters():
        parameter.requres_grad = True
    model[0].requires_grad = False
    found, trust = verdicts(save(tmp_path, model))
    assert set(found.values()) == {"frozen"}
    assert [(m.where, m.attribute, m.value) for m in trust.mistakes] == [
        ("4.weight", "requres_grad", True),
        ("4.bias", "requres_grad", True),
        ("0", "requires_grad", False),
    ]
    assert "meant: .requires_grad_(False)" in trust.mistakes[2].what


@pytest.mark.parametrize(
    "name",
    [
        "requres_grad",
        "require_grad",
        "requires_grads",
        "required_grad",
        "requiresgrad",
        "requires_gard",
        "Requires_Grad",
    ],
)
def test_misspellings(name):
    assert resembles_requires_grad(name) == (name != "requires_grad")


@pytest.mark.parametrize(
    "name", ["requires_grad", "_requires_grad", "is_buffer", "persistent", "grad", "tag", "quant_state"]
)
def test_other_attributes_are_no_misspellings(name):
    assert not resembles_requires_grad(name)


def test_several_models_need_a_choice(tmp_path):
    path = save(tmp_path, {"generator": net().state_dict(), "critic": net(2).state_dict()})
    with pytest.raises(CkptError, match=r"2 state_dicts: generator, critic.*--select"):
        verdicts(path)
    found, _ = verdicts(path, select="critic")
    assert len(found) == 6
    with pytest.raises(CkptError, match=r"no state_dict at 'x'; there are: generator, critic"):
        verdicts(path, select="x")
