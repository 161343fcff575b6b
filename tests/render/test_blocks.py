"""How the text and markdown renderers show each kind of block."""

import math

import pytest

from ckpt_tools.render import render
from ckpt_tools.report import Facts, HeatMap, Histogram, Report, Table, Tree


def shown(block, format="text", width=0):
    return render([Report("m.pt", dict, [block], "fine")], format, command="inspect", width=width)


TREE = Tree("Layers", ("layer", ">elements"), [(0, ("block", "12")), (1, ("conv", "8")), (0, ("fc", "4"))], "a note")
HEAT = HeatMap(
    "Change",
    [("block", [("conv", 0.02), ("bias", 0.0)]), ("fc", [("weight", 3.5), ("bias", math.inf), ("x", math.nan)])],
    "relative change",
    "of the parameters",
)
HISTOGRAM = Histogram("fc.weight", (-1.5, -0.5, 0.5, 1.5), (1, 8, 4), "of the change")


def test_a_tree_is_indented():
    assert shown(TREE) == (
        "m.pt: fine\n\nLayers\n"
        "  layer   elements\n  block         12\n    conv         8\n  fc             4\n"
        "  a note\n"
    )
    assert "| &nbsp;&nbsp;conv |          8 |" in shown(TREE, "markdown")


def test_a_heat_map_is_a_strip_a_row_with_a_legend():
    assert shown(HEAT) == (
        "m.pt: fine\n\nChange\n"
        "  block  ▆·\n"
        "  fc     █∞?\n"
        "         relative change: ▁ below 1e-06, a step each tenfold, █ from 1, · 0, ∞ infinite, ? not comparable\n"
        "  of the parameters\n"
    )
    assert "| fc    | █∞?" in shown(HEAT, "markdown")


def test_a_long_strip_is_broken():
    text = shown(HeatMap("", [("layer", [("w", 2.0)] * 100)]))
    assert [line.strip().removeprefix("layer  ") for line in text.splitlines()[2:4]] == ["█" * 64, "█" * 36]


def test_a_histogram_is_a_line_of_bars():
    assert shown(HISTOGRAM) == "m.pt: fine\n\nfc.weight\n    -1.5 ▁█▄ 1.5\n  of the change\n"
    assert "-1.5 ▁█▄ 1.5" in shown(HISTOGRAM, "markdown")


def test_what_has_no_rows_is_left_out():
    for block in (Facts("a", []), Table("a", ("b",), []), Tree("a", ("b",), []), HeatMap("a", [])):
        for format in ("text", "markdown"):
            assert "a\n" not in shown(block, format).replace("## m.pt", "")


def test_cells_are_broken_between_words_as_long_as_there_is_room() -> None:
    names = "features.0.weight, features.1.weight, features.2.weight"
    reasons = "the optimizer stepped it in every one of the epochs that this file knows of"
    table = Table("", ("which", "reason"), [(names, reasons), ("head.bias", "a" * 64)])
    lines = shown(table, width=60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    words = {word for line in lines for word in line.split()}
    assert {"features.0.weight,", "features.1.weight,", "features.2.weight", "optimizer", "head.bias"} <= words
    # a word of no use to readers is broken, and where nothing else helps so is any other
    assert "a" * 64 not in words
    narrow = shown(Table("", ("a", "b", "c", "d"), [tuple(c * 30 for c in "xyzw")]), width=60).splitlines()
    assert all(len(line) <= 60 for line in narrow)
    assert sum(line.count("x") for line in narrow) == 30


def test_columns_that_are_too_wide_share_the_room() -> None:
    short, long, longer = "a few words", "some more words " * 8, "many more words " * 12
    lines = shown(Table("", ("short", "long", "longer"), [(short, long, longer)]), width=100).splitlines()
    heading = next(line for line in lines if "longer" in line)
    at = [heading.index(name) for name in ("short", "long  ", "longer")]
    assert at[1] - at[0] == len(short) + 2  # it keeps what it needs
    assert abs((at[2] - at[1]) - (100 - at[2])) <= 4  # neither pays for both


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("call ``model.eval()``, *then* go", "call `model.eval()`, \\*then\\* go"),
        ("`a|b`", "`a\\|b`"),
        ("a` <b>", "a\\` \\<b\\>"),
        ("a ` ` b", "a \\` \\` b"),
    ],
)
def test_markdown_shows_code_as_code_and_else_what_stands_there(text: str, markdown: str) -> None:
    assert f"| {markdown} |" in shown(Table("", ("what",), [(text,)]), "markdown")
