"""What changed between two checkpoints: categories, pairing, ties, norms, the verdict."""

import datetime
import json
import math
import re
from pathlib import Path

import numpy
import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.comparison import Tolerance
from ckpt_tools.analysis.diff import ABSENT, CATEGORIES, Options, diff, moved
from ckpt_tools.analysis.diff_layers import verdict
from ckpt_tools.convert.run import carry_out, prepare
from ckpt_tools.errors import Ambiguous, CkptError

torch = pytest.importorskip("torch")


@pytest.fixture
def compared(tmp_path):
    def compared(a, b, **options):
        torch.save(a, tmp_path / "a.pt")
        torch.save(b, tmp_path / "b.pt")
        return diff(open_checkpoint(tmp_path / "a.pt"), open_checkpoint(tmp_path / "b.pt"), Options(**options))

    return compared


@pytest.fixture
def transfer(fixtures_dir):
    def transfer(name, **options):
        a, b = (open_checkpoint(fixtures_dir / "transfer" / f"{n}.pt") for n in ("base", name))
        return diff(a, b, Options(**options))

    return transfer


def changes(found):
    return {entry.name: entry.change for entry in found.tensors}


def convert(source, target):
    carry_out(*prepare(str(source), str(target)))


def net(**settings):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1, **settings), torch.nn.Dropout(0.5))


# --- tensors


def test_every_change_has_its_name(compared):
    a = {
        "same": torch.ones(2),
        "moved": torch.zeros(2),
        "cast": torch.ones(3),
        "cut": torch.ones(1),
        "gone": torch.ones(7),
    }
    b = {
        "same": torch.ones(2),
        "moved": torch.ones(2),
        "cast": torch.ones(3).half(),
        "cut": torch.ones(8),
        "new": torch.ones(9),
    }
    found = compared(a, b)
    assert changes(found) == {
        "same": "identical",
        "moved": "value",
        "cast": "dtype",
        "cut": "shape",
        "gone": "removed",
        "new": "added",
    }
    assert found.differing == ("weights",)


def test_small_differences_are_differences_until_a_tolerance_says_otherwise(compared):
    a, b = {"w": torch.tensor([1e-9, 1.0])}, {"w": torch.tensor([9e-9, 1.0])}
    assert compared(a, b).different
    close = compared(a, b, tolerances=(("w", Tolerance(atol=1e-8)),))
    assert (close.different, changes(close)) == (False, {"w": "within tolerance"})
    assert compared(a, b, tolerances=(("v", Tolerance(atol=1e-8)), ("*", Tolerance(atol=1e-12)))).different
    nan = {"w": torch.tensor([math.nan, 1.0])}
    assert compared(nan, a, tolerances=(("*", Tolerance(atol=1e9)),)).different
    assert not compared(nan, nan).different


def test_counters_and_buffers_enter_no_norm(compared):
    a = {"w": torch.tensor([3.0, 4.0]), "bn.running_mean": torch.zeros(2), "bn.num_batches_tracked": torch.tensor(1)}
    b = {"w": torch.tensor([3.0, 4.5]), "bn.running_mean": torch.ones(2), "bn.num_batches_tracked": torch.tensor(10**6)}
    found = compared(a, b)
    assert moved(e for e in found.tensors if not e.is_buffer) == pytest.approx(0.1)
    assert moved(found.tensors) == pytest.approx(math.sqrt(0.25 + 2) / 5)  # the counter is not in it
    assert [e.name for e in found.tensors if e.is_buffer] == ["bn.running_mean", "bn.num_batches_tracked"]
    assert moved(compared({"w": torch.zeros(2)}, {"w": torch.ones(2)}).tensors) == math.inf
    assert moved(compared({"n": torch.tensor(1)}, {"n": torch.tensor(2)}).tensors) is None


def test_globs_choose_by_the_names_of_either_side(compared):
    a, b = {"module.w": torch.zeros(1), "module.v": torch.zeros(1)}, {"w": torch.ones(1), "v": torch.zeros(1)}
    assert list(changes(compared(a, b, keys=("module.w",)))) == ["w"]
    assert list(changes(compared(a, b, exclude=("w",)))) == ["v"]
    with pytest.raises(CkptError, match="no tensor's name matches"):
        compared(a, b, keys=("nothing.*",))


def test_a_type_is_told_where_no_value_was_read(compared):
    found = compared(
        {"a.w": torch.zeros(5), "n.running_var": torch.ones(1), "b.w": torch.ones(1)},
        {"a.w": torch.ones(5).half(), "n.running_var": torch.ones(1).half(), "b.w": torch.ones(1)},
        values=False,
    )
    assert verdict(found) == "2 tensors from float32 to float16, other weights identical (1 tensor)"


def test_what_was_left_out_is_told(compared):
    found = compared({"module.w": torch.ones(1)}, {"w": torch.ones(1)}, ignore=frozenset({"ties", "names"}))
    assert verdict(found) == "identical (1 tensor); left out: names, ties"


def test_brief_knows_what_differs_without_numbers(compared):
    found = compared({"w": torch.zeros(5), "v": torch.ones(1)}, {"w": torch.ones(5), "v": torch.ones(1)}, values=False)
    assert changes(found) == {"w": "value", "v": "identical"}
    assert "norm" not in verdict(found)


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_sparse_and_quantized_tensors_are_compared_by_their_parts(compared):
    def model(value):
        sparse = torch.tensor([[0.0, value], [0.0, 0.0]]).to_sparse()
        return {"s": sparse, "q": torch.quantize_per_tensor(torch.tensor([1.0, 2 * value]), 0.1, 0, torch.quint8)}

    assert not compared(model(1.0), model(1.0)).different
    assert changes(compared(model(1.0), model(3.0))) == {"s": "value", "q": "value"}


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_a_scale_is_part_of_a_quantized_tensor(compared):
    first = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.1, 3, torch.qint8)
    for scale, zero_point, expected in ((0.1, 3, "identical"), (0.2, 3, "value"), (0.1, 4, "value")):
        other = torch._make_per_tensor_quantized_tensor(first.int_repr(), scale, zero_point)
        assert changes(compared({"q": first}, {"q": other})) == {"q": expected}


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_what_differs_of_tensors_made_of_parts_is_told(compared):
    first = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 0.5, 3, torch.qint8)
    other = torch._make_per_tensor_quantized_tensor(first.int_repr(), 0.25, 4)
    dense = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    a = {"q": first, "values": dense.to_sparse(), "indices": dense.to_sparse(), "layout": dense.to_sparse()}
    b = {"q": other, "values": (2 * dense).to_sparse(), "indices": dense.T.to_sparse(), "layout": dense}
    assert {entry.name: entry.told for entry in compared(a, b).tensors} == {
        "q": "scale 0.5 → 0.25, zero_point 3 → 4",
        "values": "other values",
        "indices": "other indices",
        "layout": "sparse_coo → strided",
    }
    assert {entry.told for entry in compared(a, a).tensors} == {""}


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_a_number_and_a_quantized_one_are_of_two_types(compared):
    w = torch.ones(2)
    found = compared({"w": w}, {"w": torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)})
    assert changes(found) == {"w": "dtype"}
    assert found.different


def test_meta_tensors_have_nothing_to_compare(compared):
    found = compared({"w": torch.empty(2, device="meta")}, {"w": torch.empty(2, device="meta")})
    assert changes(found) == {"w": "identical"}
    found = compared({"w": torch.empty(2, device="meta")}, {"w": torch.ones(2)})
    assert changes(found) == {"w": "unreadable"}
    assert "no bytes of its own" in found.tensors[0].problem
    assert verdict(found) == "1 tensor could not be compared"


MANIFEST = json.loads((Path(__file__).resolve().parents[2] / "fixtures" / "MANIFEST.json").read_text())


INCOMPLETE = ("sharded/missing_shard", "sharded/wrong_index")
WHOLE = [e["file"] for e in MANIFEST["fixtures"] if not e.get("error") and e["file"] not in INCOMPLETE]


@pytest.mark.parametrize("file", WHOLE)
def test_every_fixture_is_the_same_as_itself(fixtures_dir, file):
    found = diff(open_checkpoint(fixtures_dir / file), open_checkpoint(fixtures_dir / file))
    unreadable = [entry for entry in found.tensors if entry.change == "unreadable"]
    assert found.different == bool(unreadable)
    assert all("missing" in entry.problem for entry in unreadable)


# --- names


def test_a_prefix_is_one_rename_and_can_be_left_out(compared):
    a, b = {"module.w": torch.ones(2)}, {"_orig_mod.module.w": torch.ones(2)}
    found = compared(a, b)
    assert (found.prefixes, found.key_map) == (("module.", "_orig_mod.module."), {"module.w": "_orig_mod.module.w"})
    assert found.differing == ("names",)
    assert not compared(a, b, ignore=frozenset({"names"})).different


def test_a_prefix_of_some_names_is_told_of_these(compared):
    plain = {f"layer{n}.weight": torch.full((2,), float(n)) for n in range(5)}
    some = {f"module.{name}" if n < 3 else name: value for n, (name, value) in enumerate(plain.items())}
    assert verdict(compared(some, plain)) == (
        "weights identical (5 tensors), prefix `module.` dropped from 3 of 5 names"
    )
    assert verdict(compared(plain, some)).endswith("prefix `module.` added to 3 of 5 names")
    every = {f"module.{name}": value for name, value in plain.items()}
    assert verdict(compared(every, plain)).endswith("prefix `module.` dropped")


@pytest.mark.parametrize("trained", [False, True])
def test_densenet121s_old_names(compared, trained):
    model = pytest.importorskip("torchvision").models.densenet121()
    new = model.state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in new.items()}
    renamed = {name: other for name, other in zip(old, new, strict=True) if name != other}
    if trained:
        new = {name: value * 1.01 if value.is_floating_point() else value + 1 for name, value in new.items()}
    found = compared(old, new)
    assert found.key_map == renamed
    assert len(found.key_map) == 696
    # biases of zero are the same before and after
    told = "696 tensors renamed, 464 of them by their order and shapes" if trained else "696 tensors renamed"
    assert told in verdict(found)
    assert all(entry.a and entry.b for entry in found.tensors)


def test_what_was_renamed_is_part_of_the_norm(compared):
    a = {"x.weight": torch.tensor([3.0, 0.0]), "y.weight": torch.tensor([[4.0]])}
    b = {"z.weight": torch.tensor([3.0, 0.0]), "y.weight": torch.tensor([[4.5]])}
    found = compared(a, b)
    assert found.key_map == {"x.weight": "z.weight"}
    assert moved(found.tensors) == pytest.approx(0.1)
    assert changes(compared(a, b, values=False)) == {"x.weight": "identical", "y.weight": "value"}


def test_what_a_conversion_noted_is_compared_with_what_its_source_has(tmp_path):
    values = {"epoch": 3, "args": {"lr": 0.1, "sizes": (1, 2), 5: None}, "best": math.inf, "rng": [torch.ones(2)]}
    for name, epoch in (("a", 3), ("b", 4)):
        torch.save({"model": {"w": torch.ones(2)}, **values, "epoch": epoch}, tmp_path / f"{name}.pt")
        torch.save({"model": {"w": torch.ones(2)}, **values, "epoch": epoch}, tmp_path / f"{name} again.pt")
    found = {}
    for name in ("a", "a again", "b"):
        convert(tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors")
        found[name] = open_checkpoint(tmp_path / f"{name}.safetensors")
    assert not diff(found["a"], found["a again"]).different  # of sources of other names
    for left in (found["a"], open_checkpoint(tmp_path / "a.pt")):
        told = {v.path: (v.a, v.b) for v in diff(left, found["b"]).values if not v.path[0].startswith("rng")}
        assert told == {("epoch",): (3, 4)}
    assert {v.path[0] for v in diff(open_checkpoint(tmp_path / "a.pt"), found["a"]).values} == {"rng.0"}


def test_part_of_a_value_is_not_all_of_it(compared):
    model = {"w": torch.ones(2)}
    more = compared({"model": model, "args": {"a": 1, "b": 2}}, {"model": model, "args": {"a": 1}})
    assert verdict(more) == "weights identical (1 tensor), `args` differs"
    whole = compared({"model": model, "args": {"a": 1, "b": 2}}, {"model": model})
    assert verdict(whole) == "weights identical (1 tensor), `args` only in A"
    state = {0: {"step": torch.ones(1)}, 1: {"step": torch.ones(1)}}
    groups = [{"lr": 0.1, "params": [0, 1]}]
    less = {"state": {0: state[0]}, "param_groups": groups}
    found = compared({"state": state, "param_groups": groups}, less)
    assert verdict(found) == "optimizer differs in state"


# --- ties


def test_broken_and_new_ties(compared):
    w = torch.randn(4, 2)
    tied, apart = {"embed": w, "head": w}, {"embed": w, "head": w.clone()}
    found = compared(tied, apart)
    assert [(tie.broken, tie.names, tie.equal) for tie in found.ties] == [(True, ("embed", "head"), True)]
    assert (found.differing, verdict(found)) == (("ties",), "weights identical (2 tensors), 1 tied group broken")
    back = compared(apart, tied)
    assert [(tie.broken, tie.names) for tie in back.ties] == [(False, ("embed", "head"))]
    assert not compared(tied, tied).ties
    other = compared(tied, {"embed": w, "head": w + 1})
    assert [(tie.broken, tie.equal) for tie in other.ties] == [(True, False)]


def test_a_name_that_was_left_out_for_its_tie_is_explained(compared):
    w = torch.randn(4, 2)
    tied, without = {"embed": w, "head": w, "v": torch.ones(1)}, {"embed": w, "v": torch.ones(1)}
    for side, pair in (("A", (tied, without)), ("B", (without, tied))):
        found = compared(*pair)
        assert found.notes == [f"head is only in {side}, where it is embed, which both have"]
        assert found.differing == ("weights",)
    assert compared({"embed": w, "head": w.clone()}, {"embed": w}).notes == []


def test_a_format_that_cannot_share_breaks_no_tie(tmp_path):
    from safetensors.torch import save_file

    w = torch.randn(4, 2)
    torch.save({"embed": w, "head": w}, tmp_path / "a.pt")
    save_file({"embed": w, "head": w.clone()}, tmp_path / "b.safetensors")
    found = diff(open_checkpoint(tmp_path / "a.pt"), open_checkpoint(tmp_path / "b.safetensors"))
    assert not found.different
    assert "embed = head: shared in A, equal copies in the other" in found.notes
    torch.save({"base": w, "transposed": w.T}, tmp_path / "c.pt")
    for name, transposed in (("d", w.T.contiguous()), ("e", w.T.contiguous() + 1)):
        save_file({"base": w, "transposed": transposed}, tmp_path / f"{name}.safetensors")
        found = diff(open_checkpoint(tmp_path / "c.pt"), open_checkpoint(tmp_path / f"{name}.safetensors"))
        assert found.differing == ((), ("weights", "ties"))[name == "e"]


# --- what is beside the weights


def test_optimizer_and_metadata_have_their_own_categories(compared):
    def checkpoint(epoch, lr):
        model = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        torch.nn.init.ones_(model.weight)
        torch.nn.init.zeros_(model.bias)
        state = {"model_satate_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
        return {"epoch": epoch, **state, "args": {"seed": epoch, "name": "x"}}

    a, b = checkpoint(1, 0.1), checkpoint(2, 0.2)
    found = compared(a, b)
    assert found.differing == ("optimizer", "metadata")
    assert [(v.category, v.path, v.a, v.b) for v in found.values] == [
        ("optimizer", ("optimizer_state_dict", "param_groups", 0, "lr"), 0.1, 0.2),
        ("metadata", ("epoch",), 1, 2),
        ("metadata", ("args", "seed"), 1, 2),
    ]
    assert (
        verdict(found) == "weights identical (2 tensors), optimizer differs in lr (0.1→0.2), epoch 1→2, `args` differs"
    )
    for category, rest in (("optimizer", ("metadata",)), ("metadata", ("optimizer",))):
        assert compared(a, b, ignore=frozenset({category})).differing == rest
    bare = compared(a, a["model_satate_dict"])
    assert bare.differing == ("optimizer", "metadata")
    assert [v.b for v in bare.values] == [ABSENT] * len(bare.values)
    assert {v.path[0] for v in bare.values} == {"optimizer_state_dict", "epoch", "args"}


def test_module_settings(compared):
    a, b = net(), net(padding_mode="reflect")
    b.load_state_dict(a.state_dict())
    b[1].p = 0.25
    b.eval()
    b[0].weight.requires_grad = False
    found = compared(a, b)
    assert found.differing == ("hyperparameters",)
    told = {(v.path, v.a, v.b) for v in found.values}
    assert {
        (("0", "padding_mode"), "zeros", "reflect"),
        (("1", "p"), 0.5, 0.25),
        (("", "training"), True, False),
        (("0.weight", "requires_grad"), True, False),
    } <= told
    b[1] = torch.nn.AlphaDropout(0.25)
    classes = [(v.a, v.b) for v in compared(a, b).values if v.path == ("1", "class")]
    assert classes == [("torch.nn.modules.dropout.Dropout", "torch.nn.modules.dropout.AlphaDropout")]


def test_few_settings_are_named(compared):
    a, b = net(), net().eval()
    b.load_state_dict(a.state_dict())
    assert verdict(compared(a, b)) == "weights identical (2 tensors), 3 module settings changed (`training`)"


def test_a_wrapper_is_no_difference_of_settings(compared):
    a = net()
    found = compared(a, torch.nn.DataParallel(a))
    assert (found.differing, found.prefixes) == (("names",), ("", "module."))


def test_a_model_and_its_state_dict_differ_in_nothing_that_both_record(compared):
    model = net()
    found = compared(model, model.state_dict())
    assert not found.different
    assert "only A records classes and settings of modules; these were not compared" in found.notes


@pytest.mark.parametrize("category", CATEGORIES)
def test_everything_can_be_left_out(compared, category):
    def checkpoint(seed):
        torch.manual_seed(seed)
        w = torch.randn(2)
        state = {"bn.running_mean": torch.randn(2), "w": w, "v": w if seed else w.clone()}
        if seed:
            state = {f"module.{name}": value for name, value in state.items()}
        group = {"lr": float(seed), "params": [0]}
        return {"net": state, "opt": {"state": {}, "param_groups": [group]}, "epoch": seed}

    a, b = checkpoint(0), checkpoint(1)
    everything = compared(a, b).differing
    assert everything == tuple(c for c in CATEGORIES if c != "hyperparameters")
    rest = compared(a, b, ignore=frozenset({category})).differing
    assert rest == tuple(c for c in everything if c != category)
    assert not compared(a, b, ignore=frozenset(CATEGORIES)).different


# --- which state_dict


def test_several_models_are_compared_by_their_keys(compared):
    a = {"gen": {"w": torch.ones(1)}, "disc": {"w": torch.ones(2)}}
    b = {"disc": {"w": torch.ones(2)}, "gen": {"w": torch.zeros(1)}}
    assert changes(compared(a, b)) == {"gen.w": "value", "disc.w": "identical"}
    with pytest.raises(Ambiguous, match="gen, disc"):
        compared(a, {"w": torch.ones(1)})
    assert changes(compared(a, {"w": torch.ones(1)}, select="gen", select_b="")) == {"w": "identical"}


def test_a_file_without_tensors_lacks_those_of_the_other(compared):
    found = compared({}, {"gen": {"w": torch.ones(1)}, "disc": {"w": torch.ones(2)}})
    assert changes(found) == {"gen.w": "added", "disc.w": "added"}
    found = compared({"w": torch.ones(1)}, {"epoch": 3})
    assert (changes(found), [value.path for value in found.values]) == ({"w": "removed"}, [("epoch",)])
    assert verdict(found) == "no tensor in common (1 tensor only in A), `epoch` only in B"
    assert not compared({}, {}).different


def test_chosen_state_dicts_are_compared_without_the_others(compared):
    file = {"model": {"w": torch.ones(2)}, "model_ema": {"w": torch.ones(2)}, "epoch": 3}
    assert not compared(file, file, select="model", select_b="model_ema").different
    assert compared(file, file | {"epoch": 4}, select="model").differing == ("metadata",)


def test_loose_tensors_are_compared(compared):
    assert changes(compared(torch.ones(2), torch.zeros(2))) == {"tensor": "value"}
    assert changes(compared([torch.ones(2)], [torch.ones(2)])) == {"0": "identical"}


def test_files_without_tensors_are_compared_by_their_values(compared):
    assert not compared({"a": 1, "n": math.nan}, {"a": 1, "n": math.nan}).different
    found = compared({"a": 1, "b": "x"}, {"a": 1.0, "b": "x"})
    assert [(v.path, v.a, v.b) for v in found.values] == [(("a",), 1, 1.0)]


def array(*items, **options):
    return numpy.array([*items], **options)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1 + 2j, 1 + 3j),
        (b"a" * 5_000, b"a" * 4_999 + b"b"),
        ("a" * 100_000, "a" * 99_999 + "b"),
        (array(1, None, dtype=object), array(2, None, dtype=object)),
        (array("a"), array("b")),
        (array((1, 2.0), dtype=[("x", "i4"), ("y", "f4")]), array((1, 3.0), dtype=[("x", "i4"), ("y", "f4")])),
        (array("2020", dtype="M8[Y]"), array("2021", dtype="M8[Y]")),
        ({b"a": 1, b"b": 2}, {b"a": 2, b"b": 1}),
        (datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)),
        (range(3), range(4)),
        (torch.float32, torch.float16),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_value_of_any_kind_that_differs_is_told(tmp_path, a, b, protocol):
    for name, value in (("a", a), ("b", b), ("again", a)):
        torch.save({"model": {"w": torch.ones(2)}, "value": value}, tmp_path / name, pickle_protocol=protocol)
    opened = [open_checkpoint(tmp_path / name) for name in ("a", "b", "again")]
    assert diff(opened[0], opened[1]).differing == ("metadata",)
    same = diff(opened[0], opened[2])
    assert (same.differing, same.uncompared) == ((), [])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"mean": torch.ones(2), "config": {"a": 1}, "names": {"b": 2}}, {"config": {"a": 2}}),
        ({1: torch.ones(2), "epoch": 1}, {"epoch": 2}),
    ],
)
def test_what_is_beside_loose_tensors_is_compared(compared, a, b):
    assert not compared(a, a).different
    assert compared(a, a | b).differing == ("metadata",)
    assert compared([torch.ones(1), 5], [torch.ones(1), 6]).differing == ("metadata",)


def test_loose_tensors_whose_keys_read_the_same_are_all_compared(compared):
    a = {1: torch.ones(2), "1": torch.zeros(3)}
    assert changes(compared(a, a)) == {"[1]": "identical", "1": "identical"}
    long = {("x" * 70 + end,): torch.ones(1) for end in "abc"}
    assert len(changes(compared(long, long))) == 3
    keys = {b"a" * 90 + b"a": torch.ones(1), b"a" * 90 + b"b": torch.zeros(1)}
    assert changes(compared(keys, keys)) == {repr(key): "identical" for key in keys}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (list(range(120_000)), [*range(119_999), 5]),
        (json.loads("[" * 80 + "1" + "]" * 80), json.loads("[" * 80 + "2" + "]" * 80)),
    ],
    ids=["many", "deep"],
)
def test_what_was_not_compared_is_not_called_identical(compared, a, b):
    found = compared({"model": {"w": torch.ones(2)}, "v": a}, {"model": {"w": torch.ones(2)}, "v": b})
    assert (found.different, len(found.uncompared)) == (False, 1)
    assert verdict(found) == "identical (1 tensor) as far as compared; 1 value could not be"
    same = {"model": {"w": torch.ones(2)}, "v": a}
    assert verdict(compared(same, same)) == "identical (1 tensor)"


# --- the verdict


def test_the_verdict_of_a_transfer(transfer):
    moved_buffers = "backbone identical (3 tensors), `head` replaced (4→2 classes), 3 BatchNorm buffers moved in 1 "
    assert verdict(transfer("tuned")) == moved_buffers + "layer whose weights stayed"
    assert verdict(transfer("model")) == moved_buffers + "frozen layer"  # which the full model records
    assert verdict(transfer("base")) == "identical (8 tensors)"
    assert verdict(transfer("checkpoint", ignore=frozenset({"optimizer", "metadata"}))).startswith(
        "2 of 5 weight tensors changed in `head`, by 0.1"
    )


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (
            {"net.w": torch.ones(2, 2), "fc.weight": torch.ones(3, 2)},
            {"net.w": torch.ones(2, 2), "dense.weight": torch.ones(1, 2)},
            "backbone identical (1 tensor), `fc` replaced by `dense` (3→1 classes)",
        ),
        (
            {"net.w": torch.ones(2, 2), "fc.weight": torch.ones(3, 2)},
            {"net.w": torch.ones(2, 2), "fc.0.weight": torch.ones(5, 2), "fc.2.weight": torch.ones(4, 5)},
            "backbone identical (1 tensor), `fc` replaced (3→4 classes)",
        ),
        (
            {"net.w": torch.ones(2, 2)},
            {"net.w": torch.ones(2, 2), "extra.w": torch.ones(4)},
            "weights identical (1 tensor), `extra` added",
        ),
        (
            {"a.w": torch.ones(2), "b.w": torch.full((2,), 0.1)},
            {"a.w": torch.ones(2).half(), "b.w": torch.full((2,), 0.1).half()},
            "B is A cast to float16 (2 tensors)",
        ),
        (
            {"a.w": torch.full((2,), 0.1).half()},
            {"a.w": torch.full((2,), 0.1).half().double()},
            "B is A cast to float64 (1 tensor)",
        ),
        (
            {"a.w": torch.ones(2)},
            {"a.w": torch.tensor([1.0, math.nan])},
            "the only weight tensor changed, 1 tensor with new NaN or Inf",
        ),
        (
            {"n.weight": torch.ones(2), "n.running_var": torch.ones(2)},
            {"n.weight": torch.ones(2), "n.running_var": torch.ones(2), "n.num_batches_tracked": torch.tensor(0)},
            "weights identical (1 tensor), 1 BatchNorm buffer added",
        ),
        (
            {"a.w": torch.ones(2)},
            {"b.v": torch.ones(3)},
            "no tensor in common (1 tensor only in A, 1 tensor only in B)",
        ),
        ({"a.w": torch.zeros(2)}, {"a.w": torch.ones(2)}, "the only weight tensor changed"),
        ({"a.w": torch.ones(1)}, {"a.w": torch.ones(8)}, "`a.w` of another shape"),
        (
            {"a.w": torch.ones(1), "b.w": torch.ones(1)},
            {"a.w": torch.ones(8), "b.w": torch.ones(1)},
            "`a.w` of another shape, other weights identical (1 tensor)",
        ),
        (  # of what was cast to a wider type, some lost nothing: those do not turn the direction
            {"a.w": torch.full((2,), 0.1).half(), "b.w": torch.ones(2).half()},
            {"a.w": torch.full((2,), 0.1), "b.w": torch.ones(2)},
            "A is B cast to float16 (2 tensors)",
        ),
        (
            {"a.w": torch.full((2,), 0.1), "b.w": torch.ones(2), "c.w": torch.ones(2)},
            {"a.w": torch.full((2,), 0.1).half(), "b.w": torch.full((2,), 2.0), "c.w": torch.ones(2)},
            "B is A cast to float16 (1 tensor), 1 of 2 other weight tensors changed in `b`, by 1 of its norm",
        ),
        (
            {"a.w": torch.full((2,), 0.1), "b.w": torch.ones(2), "c.w": torch.ones(2)},
            {"a.w": torch.full((2,), 0.1).half(), "b.w": torch.full((2,), 2.0), "c.w": torch.full((2,), 2.0)},
            "B is A cast to float16 (1 tensor), all 2 other weight tensors changed, by 1 of their norm",
        ),
        (
            {"n.w": torch.ones(2), "n.running_var": torch.ones(2)},
            {"n.w": torch.ones(2).half(), "n.running_var": torch.full((2,), 2.0)},
            "B is A cast to float16 (1 tensor), 1 BatchNorm buffer moved in 1 layer whose weights stayed",
        ),
        (
            {"a.w": torch.ones(2), "n.running_mean": torch.zeros(2)},
            {"a.w": torch.ones(2), "n.running_mean": torch.ones(2)},
            "weights identical (1 tensor), 1 BatchNorm buffer moved in 1 layer without weights",
        ),
        (
            {"w": torch.ones(1), "x": torch.ones(2)},
            {"w": torch.ones(1), "x": torch.ones(2), "epoch": 1, "step": 2, "loss": 0.5},
            "weights identical (2 tensors), `epoch`, `loss` and `step` only in B",
        ),
        (
            {"a.w": torch.ones(2), "b.w": torch.ones(3), "c.w": torch.ones(4)},
            {"a.w": torch.ones(2), "b.w": torch.ones(3), "c.w": torch.ones(4) * 2, "x": 1},
            "1 of 3 weight tensors changed in `c`, by 1 of its norm, `x` only in B",
        ),
    ],
)
def test_verdicts(compared, a, b, sentence):
    assert verdict(compared(a, b)) == sentence
