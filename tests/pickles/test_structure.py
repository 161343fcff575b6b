"""Values found again by the paths at which a survey of a file has found them."""

import io
import pickle
from collections import OrderedDict
from types import SimpleNamespace

import pytest

from ckpt_tools.pickles.machine import evaluate
from ckpt_tools.pickles.structure import value_at


class Made:
    """Restored by a call with arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> object:
        return Made, self.arguments


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [
        ({"a": {"b": [1, {"c": 7}]}}, ("a", "b", 1, "c"), 7),
        ({"a": {"b": 5}}, (), {"a": {"b": 5}}),
        ({"a": {"b": 5}}, ("a", "x"), None),
        ({"a": 5}, ("a", "b"), None),
        ({3: {"b": 5}}, (3, "b"), 5),
        ({"a": OrderedDict(b=5)}, ("a", "b"), 5),
        ({"run": SimpleNamespace(epoch=4)}, ("run", "epoch"), 4),
        ({"made": Made({"b": 5}, Made({"c": 6}))}, ("made", "c"), 6),
    ],
)
def test_the_value_at_a_path(value: object, path: tuple[object, ...], found: object) -> None:
    assert value_at(evaluate(pickle.dumps(value)).root, path) == found


def test_arguments_that_are_shared_are_looked_through_once() -> None:
    made: object = Made({"x": 1})
    for _ in range(200):
        made = Made(made, made)
    file = io.BytesIO()
    pickle.Pickler(file).dump(made)
    assert value_at(evaluate(file.getvalue()).root, ("x",)) == 1
