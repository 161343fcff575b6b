"""The report of a diff as people read it: every number of every row, and what its tables say."""

import math

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.diff import Options, diff
from ckpt_tools.analysis.diff_report import report
from ckpt_tools.report import Table, Tree

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
