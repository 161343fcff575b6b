"""Decisions that differ: rows of things found, compared as the things that they are, and whole numbers."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.runtime.onnx.compare import Tolerance  # noqa: E402
from ckpt_tools.runtime.onnx.rows import compare_things, compare_whole, counted, found_things, pair  # noqa: E402

TIGHT = Tolerance(1e-5, 1e-4)
NAMES = ["boxes", "scores", "labels"]


def things(*rows: tuple[float, float, int]) -> list[Any]:
    """Boxes of one number each, scores and labels."""
    return [
        torch.tensor([[place] for place, _, _ in rows]),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for _, _, label in rows]),
    ]


THREE = things((10.0, 0.9, 1), (20.0, 0.5, 2), (30.0, 0.5, 1))


def compared(wanted: Any, found: Any, *moved: Any) -> tuple[list[str], int, int]:
    """The faults of each output, and how many rows were reordered and left out."""
    answers = compare_things(wanted, found, TIGHT, moved, NAMES)
    assert answers is not None
    assert len({(answer.reordered, answer.hanging) for answer in answers}) == 1
    return [answer.difference.fault for answer in answers], answers[0].reordered, answers[0].hanging


def port(name: str, *shape: Any) -> Any:
    return SimpleNamespace(name=name, shape=list(shape))


def test_which_outputs_have_rows_that_no_input_tells_the_number_of() -> None:
    session = SimpleNamespace(
        get_inputs=lambda: [port("x", "batch", 3, "height")],
        get_outputs=lambda: [
            port("a", "Min(300, u4)", 4), port("b", "batch", 5), port("c", "2*batch + height", 5), port("d", 7),
            port("e"), port("f", None, 4), port("g", "batch*u0"),
        ],
    )  # fmt: skip
    assert counted(session) == [True, False, False, False, False, True, True]


def test_what_belongs_together_are_siblings_of_as_many_rows_with_scores() -> None:
    paths = ["[0].boxes", "[0].scores", "[0].labels", "[1].boxes", "[1].scores", "features"]
    other = [torch.zeros(2, 4), torch.tensor([0.1, 0.2])]  # which rise
    tensors = [*THREE, *other, torch.zeros(3)]
    assert found_things(paths, tensors, [True] * 6) == [[0, 1, 2], [5]]
    assert found_things(paths, tensors, [True, True, False, True, True, False]) == [[0, 1]]


def test_rows_of_equal_scores_may_stand_in_any_order() -> None:
    swapped = things((10.0, 0.9, 1), (30.0, 0.5, 1), (20.0, 0.5, 2))
    assert pair(THREE, swapped, TIGHT).rows == ([0, 1, 2], [0, 2, 1])
    assert compared(THREE, swapped) == (["", "", ""], 2, 0)
    assert compared(THREE, THREE) == (["", "", ""], 0, 0)


def test_rows_of_other_scores_may_not() -> None:
    swapped = things((20.0, 0.9, 2), (10.0, 0.5, 1), (30.0, 0.5, 1))
    (fault, *others), reordered, hanging = compared(THREE, swapped)
    assert (others, reordered, hanging) == (["", ""], 0, 0)
    assert fault == (
        "torch finds 3 rows of boxes, scores, labels, the file 3; 2 of torch's are not in the file's, the first [0] "
        "(boxes 10; scores 0.9; labels 1); 2 of the file's are not in torch's, the first [0] (boxes 20; scores 0.9; "
        "labels 2)"
    )


def test_a_row_is_taken_once() -> None:
    twice = things((10.0, 0.9, 1), (20.0, 0.5, 2), (20.0, 0.5, 2), (30.0, 0.5, 1))
    (fault, *_), _, _ = compared(THREE, twice, THREE, THREE)
    assert fault == (
        "torch finds 3 rows of boxes, scores, labels, the file 4; 1 of the file's are not in torch's, the first [2] "
        "(boxes 20; scores 0.5; labels 2)"
    )


def test_a_row_less_is_excused_if_torch_loses_it_too() -> None:
    fewer = things((10.0, 0.9, 1), (20.0, 0.5, 2))
    assert compared(THREE, fewer, THREE, fewer) == (["", "", ""], 0, 1)
    assert compared(fewer, THREE, fewer, THREE) == (["", "", ""], 0, 1)
    assert compared(THREE, fewer, THREE)[0][0].startswith("torch finds 3 rows of boxes, scores, labels, the file 2; 1 ")


def test_a_value_that_is_off_is_not_excused_by_one_that_moves() -> None:
    off = things((10.0, 0.9, 1), (20.1, 0.5, 2), (30.0, 0.5, 1))
    moved = things((10.0, 0.9, 1), (20.005, 0.5, 2), (30.0, 0.5, 1))  # beyond the tolerance, but the same thing
    assert "1 of torch's are not in the file's" in compared(THREE, off, moved)[0][0]


def test_torch_that_finds_all_else_excuses_nothing() -> None:
    fewer = things((10.0, 0.9, 1), (20.0, 0.5, 2))
    other = things((10.0, 0.9, 1), (21.0, 0.5, 2), (31.0, 0.5, 1))
    assert compared(THREE, fewer, other)[0][0] != ""


def test_nan_is_in_no_row() -> None:
    poisoned = things((10.0, 0.9, 1), (float("nan"), 0.5, 2), (30.0, 0.5, 1))
    assert compared(THREE, poisoned)[0][0] != ""
    assert compared(poisoned, poisoned)[0][0] != ""


def test_rows_of_another_kind_are_not_compared() -> None:
    assert compare_things(THREE, [torch.zeros(3, 2), *THREE[1:]], TIGHT, [], NAMES) is None
    assert compare_things(THREE, [*THREE[:2], THREE[2].float()], TIGHT, [], NAMES) is None
    assert compare_things(THREE, [*THREE[:2], THREE[2][:2]], TIGHT, [], NAMES) is None


def test_nothing_found_is_the_same_as_nothing() -> None:
    none = [tensor[:0] for tensor in THREE]
    assert compared(none, none) == (["", "", ""], 0, 0)
    assert compared(none, THREE)[0][0].startswith("torch finds 0 rows of boxes, scores, labels, the file 3; 3 of the")


def test_whole_numbers_are_equal_or_such_as_torch_gives_too() -> None:
    wanted, found = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 5, 4])
    answer = compare_whole(wanted, found, TIGHT, [torch.tensor([1, 9, 3, 4]), torch.tensor([7, 2, 5, 4])])
    assert (answer.difference.fault, answer.hanging) == ("", 1)
    answer = compare_whole(wanted, torch.tensor([1, 9, 5, 4]), TIGHT, [torch.tensor([1, 2, 5, 4])])
    assert answer.difference.fault.startswith("1 of 4 values are too far apart, the worst at [1]: 2 in torch and 9 in")
    assert answer.hanging == 1
    assert compare_whole(wanted, found, TIGHT, []).difference.fault != ""


class Step(torch.nn.Module):
    """Whether the sum of each row has reached a value, and a sum beside it."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Any) -> Any:
        return {"reached": (x.sum(1) >= self.at).long(), "sum": x.sum(1)}


def test_a_sweep_asks_torch_about_decisions_that_differ() -> None:
    from ckpt_tools.runtime.onnx.inputs import arguments, cases
    from ckpt_tools.runtime.onnx.sessions import Target
    from ckpt_tools.runtime.onnx.sweep import sweep

    made = arguments(["4,8"], (), (), (), Step(0))
    (case,) = cases(made, 1)
    sums = case.tensors["x"].sum(1)

    def run(at: float) -> tuple[str, int]:
        found = (sums >= at).long()
        found[0] = 1 - found[0]
        session: Any = SimpleNamespace(
            run=lambda tensors: [found, sums],
            outputs=["reached", "sum"],
            target=Target("cpu"),
            raw=SimpleNamespace(get_inputs=lambda: [port("x", 4, 8)], get_outputs=lambda: [port("y", 4)] * 2),
        )
        reached, beside = sweep(Step(at), made, [case], [(session, TIGHT)])
        assert (beside.output, beside.fault) == ("sum", "")
        assert reached.compared is not None
        return reached.fault, reached.compared.hanging

    assert run(float(sums[0])) == ("", 1)
    assert run(float(sums[0]) - 0.1)[0].startswith("1 of 4 values are too far apart, the worst at [0]: ")


def test_torch_is_not_asked_where_no_rounding_does_that() -> None:
    def asked() -> Any:
        raise AssertionError("it was asked")
        yield

    wanted = torch.tensor([1, 2, 3, 4])
    assert compare_whole(wanted, torch.tensor([1, 9, 9, 9]), TIGHT, asked()).difference.fault != ""
    other = things((11.0, 0.9, 1), (21.0, 0.5, 2), (30.0, 0.5, 1))
    answers = compare_things(THREE, other, TIGHT, asked(), NAMES)
    assert answers is not None
    assert "2 of torch's are not in the file's" in answers[0].difference.fault
