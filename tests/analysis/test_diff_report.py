"""The report of a diff as people read it: every number of every row, and what its tables say."""

import math
import re

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.diff import Options, diff
from ckpt_tools.analysis.diff_report import FEW, HEAT_ROWS, LONGEST, ranks_of, report
from ckpt_tools.report import HeatMap, Histogram, Table, Tree

torch = pytest.importorskip("torch")


@pytest.fixture
def reported(tmp_path):
    """``reported(a, b)`` is the report of two objects that were saved; options of it and of `diff` may follow."""

    def reported(a, b, options=None, **said):
        torch.save(a, tmp_path / "a.pt")
        torch.save(b, tmp_path / "b.pt")
        found = diff(open_checkpoint(tmp_path / "a.pt"), open_checkpoint(tmp_path / "b.pt"), options or Options())
        return report(found, **said)

    return reported


def table(made, title):
    """The rows of a table or tree by their first cell, each as a dict by column."""
    (block,) = [block for block in made.blocks if isinstance(block, Table | Tree) and block.title == title]
    rows = [row for _, row in block.rows] if isinstance(block, Tree) else block.rows
    columns = [name.removeprefix(">") for name in block.columns]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


# --- layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_stands_for_many_layers_tells_of_all_of_them(reported, dtype):
    torch.manual_seed(0)
    a = {f"layers.{i}.{name}.weight": torch.randn(8, 8) * 10**i for i in range(4) for name in "qk"}
    b = {name: value.to(dtype) for name, value in a.items()}
    if dtype == torch.float32:
        b["layers.3.k.weight"] = b["layers.3.k.weight"] + 1
    rows = table(reported(a, b, depth=2), "Layers")
    found = {"layers": list(a), "{0-3}": list(a), "{0-2}": list(a)[:6], "3": list(a)[6:]}
    assert set(rows) == ({"layers", "{0-2}", "3"} if dtype == torch.float32 else {"layers", "{0-3}"})
    for path, row in rows.items():
        apart = [b[name].double() - a[name].double() for name in found[path]]
        distance = math.hypot(*(float(x.norm()) for x in apart))
        norm = math.hypot(*(float(a[name].double().norm()) for name in found[path]))
        assert row["tensors"] == str(len(found[path]))
        if not distance:
            assert (row["what"], row["relative change"], row["max |Δ|"]) == ("identical", "", "")
            continue
        assert float(row["relative change"]) == pytest.approx(distance / norm, rel=6e-3), path
        assert float(row["max |Δ|"]) == pytest.approx(max(float(x.abs().max()) for x in apart), rel=6e-3)


# --- tensors


def test_a_name_is_one_line_and_leaves_room(reported):
    names = ["two\nlines.weight", "", "x." * 300 + "weight"]
    made = reported({name: torch.zeros(1) for name in names}, {name: torch.ones(1) for name in names}, every=True)
    shown = list(table(made, "Tensors that differ"))
    assert shown[:2] == ["two\\nlines.weight", "(no name)"]
    assert len(shown[2]) == LONGEST
    assert re.fullmatch(r"(x\.)+x?….*\.weight", shown[2])
    made = reported({"v": torch.zeros(1)}, {"v": torch.zeros(1)} | {name: torch.ones(1) for name in names})
    assert list(table(made, "Only in B")) == shown


def test_one_that_was_cast_stands_by_its_name(reported):
    a = {f"l{i}.weight": torch.zeros(2, i + 1) for i in range(FEW)} | {"cast": torch.ones(3)}
    b = {name: value + 1 for name, value in a.items()} | {"cast": torch.ones(3).half()}
    assert table(reported(a, b), "Tensors that differ")["cast"]["change"] == "float32 → float16"


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_what_parts_say_is_a_remark(reported):
    q = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)
    other = torch._make_per_tensor_quantized_tensor(q.int_repr(), 0.25, 0)
    rows = table(reported({"q": q}, {"q": other}), "Tensors that differ")
    assert rows["q"]["remarks"] == "scale 0.5 → 0.25"


def test_what_is_beyond_float64_is_not_from_zero(reported):
    a, b = (torch.tensor([value, 1.0], dtype=torch.float64) for value in (1e308, -1e308))
    made = reported({"w": a, "z": torch.zeros(1)}, {"w": b, "z": torch.ones(1)})
    rows = table(made, "Tensors that differ")
    assert (rows["w"]["relative"], rows["w"]["max |Δ|"], rows["z"]["relative"]) == ("", "inf", "from zero")
    assert made.data["tensors"][0]["relative"] is None


def test_the_tensors_chosen_are_counted(reported):
    a = {f"l{i}": torch.zeros(1) for i in range(5)}
    made = reported(a, a, Options(keys=("l[012]",), exclude=("l2",)))
    assert ("chosen", "2 of 5 tensors, by their names") in made.blocks[0].rows
    assert not any(label == "chosen" for label, _ in reported(a, a).blocks[0].rows)


def test_many_that_were_renamed_alike_are_one_row(reported):
    torch.manual_seed(0)
    a = {f"block{i}.{name}": torch.randn(3) for i in range(10) for name in ("norm.1.weight", "conv.2.bias")}
    b = {name.replace("m.1", "m1").replace("v.2", "v2"): value for name, value in a.items()}
    rows = table(reported(a, b), "Renamed")
    assert rows == {
        "*.norm.1.*": {"in A": "*.norm.1.*", "in B": "*.norm1.*", "tensors": "10", "known by": "same bytes"},
        "*.conv.2.*": {"in A": "*.conv.2.*", "in B": "*.conv2.*", "tensors": "10", "known by": "same bytes"},
    }
    assert list(table(reported(a, b, every=True), "Renamed")) == list(a)
    few, others = dict(list(a.items())[:4]), dict(list(b.items())[:4])
    assert list(table(reported(few, others), "Renamed")) == list(few)


# --- ranks


@pytest.fixture
def ranked(tmp_path):
    """The report with ranks of a change of these ranks, one a matrix; None is a change of full rank."""

    def ranked(*ranks, **said):
        torch.manual_seed(0)
        a = {f"l{i}.weight": torch.randn(32, 32) for i in range(len(ranks))}
        b = {
            name: value + (torch.randn(32, 32) if rank is None else torch.randn(32, rank) @ torch.randn(rank, 32))
            for (name, value), rank in zip(a.items(), ranks, strict=True)
        }
        torch.save(a, tmp_path / "a.pt")
        torch.save(b, tmp_path / "b.pt")
        found = diff(open_checkpoint(tmp_path / "a.pt"), open_checkpoint(tmp_path / "b.pt"))
        return report(found, ranks=ranks_of(found), **said)

    return ranked


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ([2], ", the only changed matrix consistent with LoRA r≈2"),
        ([4, 4, 4], ", all 3 changed matrices consistent with LoRA r≈4"),
        ([2, 4, None], ", 2 of 3 changed matrices consistent with LoRA r≈2 to 4"),
        ([None, None], " of their norm"),
    ],
)
def test_the_sentence_tells_of_low_ranks(ranked, ranks, told):
    assert ranked(*ranks).verdict.endswith(told)


def test_many_of_one_rank_are_one_row(ranked):
    made = ranked(*[2] * FEW, None)
    assert {(row["rank of its change"], row["remark"]) for row in table(made, "Rank").values()} == {
        ("2", "consistent with LoRA r≈2"),
        ("full", ""),
    }
    assert next(iter(table(made, "Rank"))) == f"{FEW} matrices, such as l0.weight"
    assert len(table(ranked(*[2] * FEW, None, every=True), "Rank")) == FEW + 1


# --- pictures


def test_a_heat_map_has_no_more_rows_than_can_be_looked_at(reported):
    layers = HEAT_ROWS // 2
    a = {f"net.{i}.{name}.weight": torch.ones(1) for i in range(layers) for name in "qkv"}
    made = reported(a, {name: value * 1.5 for name, value in a.items()}, pictures=True)
    (heat,) = [block for block in made.blocks if isinstance(block, HeatMap)]
    assert [label for label, _ in heat.rows] == [f"net.{i}" for i in range(layers)]
    assert heat.rows[0][1] == [("q.weight", 0.5), ("k.weight", 0.5), ("v.weight", 0.5)]
    few = dict(list(a.items())[:4])
    made = reported(few, few | {"net.0.q.weight": torch.zeros(1)}, pictures=True)
    (heat,) = [block for block in made.blocks if isinstance(block, HeatMap)]
    assert heat.rows[:2] == [("net.0.q", [("weight", 1.0)]), ("net.0.k", [("weight", 0.0)])]


def test_what_was_zero_is_pictured_last(reported):
    a = {"zero": torch.zeros(2), "little": torch.ones(2), "much": torch.ones(2)}
    b = {"zero": torch.ones(2), "little": torch.full((2,), 1.25), "much": torch.full((2,), 3.0)}
    titles = [block.title for block in reported(a, b, pictures=True).blocks if isinstance(block, Histogram)]
    assert titles == ["|Δ| of much", "|Δ| of little", "|Δ| of zero"]


def test_what_has_no_bytes_of_its_own_has_no_picture_and_no_rank(tmp_path):
    """Sparse tensors and those of a type that is no number are told of all the same."""
    a = {"sparse": torch.eye(4).to_sparse(), "w": torch.eye(4)}
    torch.save(a, tmp_path / "a.pt")
    torch.save({"sparse": (2 * torch.eye(4)).to_sparse(), "w": 2 * torch.eye(4)}, tmp_path / "b.pt")
    found = diff(open_checkpoint(tmp_path / "a.pt"), open_checkpoint(tmp_path / "b.pt"))
    assert list(ranks_of(found)) == ["w"]
    made = report(found, pictures=True, ranks=ranks_of(found))
    assert [block.title for block in made.blocks if isinstance(block, Histogram)] == ["|Δ| of w"]
    assert table(made, "Tensors that differ")["sparse"]["remarks"] == "other values"
