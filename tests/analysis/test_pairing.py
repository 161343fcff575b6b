"""Renamed tensors are found by prefix, by content, by order; what is only alike is not taken for the same."""

import re

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.pairing import pair

torch = pytest.importorskip("torch")


def tensors(tmp_path, state_dict, name):
    torch.save(state_dict, tmp_path / name)
    return open_checkpoint(tmp_path / name).model_state_dict().tensors


@pytest.fixture
def paired(tmp_path):
    return lambda a, b: pair(tensors(tmp_path, a, "a.pt"), tensors(tmp_path, b, "b.pt"))


def state_dict(*shapes, prefix="", seed=0):
    torch.manual_seed(seed)
    return {f"{prefix}layer{i}.weight": torch.randn(shape) for i, shape in enumerate(shapes)}


def test_equal_names(paired):
    found = paired(state_dict((2, 3), (4,)), state_dict((2, 3), (4,), seed=1))
    assert [p.how for p in found.pairs] == ["name", "name"]
    assert (found.only_a, found.only_b, found.key_map) == ((), (), {})


@pytest.mark.parametrize(("a", "b"), [("module.", ""), ("", "module._orig_mod."), ("model.", "module.")])
def test_prefixes(paired, a, b):
    found = paired(state_dict((2, 3), (4,), prefix=a), state_dict((2, 3), (4,), prefix=b))
    assert found.prefixes == (a, b)
    assert [p.how for p in found.pairs] == ["prefix", "prefix"]
    assert found.key_map == {f"{a}layer{i}.weight": f"{b}layer{i}.weight" for i in range(2)}


def test_a_prefix_that_both_carry_is_no_rename(paired):
    found = paired(state_dict((2,), prefix="module."), state_dict((2,), prefix="module."))
    assert [p.how for p in found.pairs] == ["name"]


def test_content_finds_shuffled_names(paired):
    a = state_dict((2, 2), (2, 2), (2, 2))
    values = list(a.values())
    found = paired(a, {"x": values[2], "y": values[0], "z": values[1]})
    assert found.key_map == {"layer0.weight": "y", "layer1.weight": "z", "layer2.weight": "x"}
    assert {p.how for p in found.pairs} == {"content"}


def test_order_and_shape_find_changed_renamed_tensors(paired):
    a = {f"old{i}.{n}": torch.randn(s) for i in range(3) for n, s in (("weight", (i + 2, 2)), ("bias", (i + 2,)))}
    b = {f"new.{i}.{n}": torch.randn(s) for i in range(3) for n, s in (("weight", (i + 2, 2)), ("bias", (i + 2,)))}
    found = paired(a, b)
    assert {p.how for p in found.pairs} == {"order"}
    assert found.key_map == {f"old{i}.{n}": f"new.{i}.{n}" for i in range(3) for n in ("weight", "bias")}


def test_added_and_removed(paired):
    found = paired({"a": torch.zeros(2), "gone": torch.zeros(7)}, {"a": torch.zeros(2), "new": torch.zeros(9)})
    assert [t.name for t in found.only_a] == ["gone"]
    assert [t.name for t in found.only_b] == ["new"]


def test_densenet121s_old_names(paired):
    model = pytest.importorskip("torchvision").models.densenet121()
    new = model.state_dict()
    # what torchvision's own loader undoes: norm1 was norm.1, conv2 was conv.2
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): value for name, value in new.items()}
    renamed = {name: other for name, other in zip(old, new, strict=True) if name != other}
    assert (len(new), len(renamed)) == (727, 696)
    found = paired(old, new)
    assert found.key_map == renamed


def test_order_is_quick_where_the_ends_fit(paired):
    # all pairs of these would be beyond the limit
    def layers(name, last):
        return {f"{name}.{i}.weight": torch.full((2,), float(i)) for i in range(5500)} | last

    a = layers("layers", {"head.weight": torch.ones(4, 2)})
    b = layers("blocks", {"dense.0.weight": torch.ones(3, 2), "dense.1.weight": torch.ones(5, 3)})
    found = paired(a, {name: value + 0.5 for name, value in b.items()})
    assert found.key_map == {f"layers.{i}.weight": f"blocks.{i}.weight" for i in range(5500)}
    assert [t.name for t in found.only_a] == ["head.weight"]


def test_prefixes_that_not_all_names_carry(paired):
    a = {"conv.weight": torch.randn(3), "bn.running_mean": torch.zeros(4), "bn.bias": torch.zeros(4)}
    b = {"extra": torch.ones(9), **{f"module.{name}": value + 1 for name, value in a.items()}}
    found = paired(a, b)
    assert found.key_map == {name: f"module.{name}" for name in a}
    assert {p.how for p in found.pairs} == {"prefix"}
    assert [t.name for t in found.only_b] == ["extra"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_prefix_that_no_wrapper_adds(paired, turned):
    names = [f"layer{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    a = {name: torch.randn(3) for name in names} | {"fc.weight": torch.randn(5, 3)}
    b = {f"net.encoder.{name}": torch.randn(3) for name in names} | {"head.0.weight": torch.randn(2, 3)}
    found = paired(b, a) if turned else paired(a, b)
    assert found.prefixes == (("net.encoder.", "") if turned else ("", "net.encoder."))
    renamed = {name: f"net.encoder.{name}" for name in names}
    assert found.key_map == ({value: key for key, value in renamed.items()} if turned else renamed)
    assert {p.how for p in found.pairs} == {"prefix"}


def test_a_prefix_of_few_names_or_of_two_kinds_is_none(paired):
    a = {f"layer{i}.weight": torch.randn(3) for i in range(3)}
    both = {f"{prefix}.{name}": torch.randn(3) for prefix in ("student", "teacher") for name in a}
    assert paired(a, both).prefixes == ("", "")
    few = {"net.layer0.weight": torch.randn(3)} | {f"other{i}.weight": torch.randn(3) for i in range(2)}
    assert paired(a, few).prefixes == ("", "")
    reshaped = {f"net.{name}": torch.randn(4) for name in a}
    assert paired(a, reshaped).prefixes == ("", "")


def test_a_prefix_is_kept_where_names_would_clash_without_it(paired):
    a = {"x.weight": torch.randn(3), "y.weight": torch.randn(3), "fc.weight": torch.randn(3)}
    b = {f"net.{name}": torch.randn(3) for name in a} | {"fc.weight": torch.randn(3)}
    found = paired(a, b)
    assert found.key_map == {name: f"net.{name}" for name in ("x.weight", "y.weight")}
    assert found.prefixes == ("", "")
    assert [t.name for t in found.only_b] == ["net.fc.weight"]


def test_constants_follow_their_layers(paired):
    a = {f"n.{i}.{name}": value for i in range(3) for name, value in (("w", torch.randn(4)), ("mean", torch.zeros(4)))}
    b = {name.replace("n.", "n"): value for name, value in a.items()} | {"n0.mean": torch.ones(4)}
    found = paired(a, b)
    assert found.key_map == {name: name.replace("n.", "n") for name in a}
    assert {p.a.name: p.how for p in found.pairs}["n.0.mean"] == "order"


def test_constants_that_are_not_as_many_are_left_to_their_order(paired):
    a = {f"n.{i}.{name}": torch.zeros(4) for i in range(3) for name in ("bias", "mean")}
    b = {name.replace("n.", "n"): value + (name == "n.0.mean") for name, value in a.items()}
    found = paired(a, b)
    assert found.key_map == {name: name.replace("n.", "n") for name in a}
    assert {p.a.name.rpartition(".")[2]: p.how for p in found.pairs} == {"bias": "content", "mean": "order"}


def test_constants_are_paired_under_their_own_last_names_alone(paired):
    a = {"a.running_mean": torch.zeros(4), "b.bias": torch.zeros(4), "c.bias": torch.zeros(4)}
    b = {"x.bias": torch.zeros(4), "y.weight": torch.zeros(4)}
    found = paired(a, b)
    assert found.key_map == {"b.bias": "x.bias"}
