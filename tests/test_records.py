"""Records: what they share with dataclasses, and where they differ."""

import copy
import inspect
import pickle
from dataclasses import asdict, field, fields, is_dataclass, replace

import pytest

from ckpt_tools.records import comparable, record


@record
class Box:
    """A box."""

    width: int
    names: list[str] = field(default_factory=list)
    depth: int = 3

    @property
    def area(self) -> int:
        """Of its floor."""
        return self.width * self.depth


@record
class Counted:
    items: tuple[str, ...]
    size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.items))


@comparable
class Point:
    x: int
    y: int = 0


def test_fields_are_set_in_order_or_by_name_and_defaults_are_made_anew() -> None:
    assert (Box(2).width, Box(2).names, Box(2).depth) == (2, [], 3)
    assert (Box(2, ["a"], depth=5).names, Box(2, ["a"], depth=5).depth) == (["a"], 5)
    assert Box(2).names is not Box(2).names
    assert Box(2).area == 6
    assert Counted(("a", "b")).size == 2


def test_a_record_has_slots_and_no_other_attribute() -> None:
    assert not hasattr(Box(2), "__dict__")
    with pytest.raises(AttributeError):
        Box(2).colour = "red"  # type: ignore[attr-defined]


def test_arguments_are_checked_as_those_of_a_function() -> None:
    assert list(inspect.signature(Box).parameters) == ["width", "names", "depth"]
    for arguments in ((), (1, [], 3, 4)):
        with pytest.raises(TypeError, match=r"Box\.__init__\(\)"):
            Box(*arguments)


def test_dataclasses_takes_it_for_one_of_its_own() -> None:
    box = Box(2, ["a"])
    assert is_dataclass(Box)
    assert [each.name for each in fields(Box)] == ["width", "names", "depth"]
    assert asdict(box) == {"width": 2, "names": ["a"], "depth": 3}
    changed = replace(box, width=7)
    assert (changed.width, changed.names) == (7, ["a"])
    assert changed.names is box.names
    with pytest.raises(TypeError):
        replace(box, colour="red")  # type: ignore[call-arg]


def test_it_can_be_copied_and_pickled() -> None:
    for made in (pickle.loads(pickle.dumps(Box(2, ["a"]))), copy.copy(Box(2, ["a"]))):
        assert asdict(made) == {"width": 2, "names": ["a"], "depth": 3}


def test_it_is_compared_by_identity_unless_it_is_to_be_comparable() -> None:
    one, other = Box(2), Box(2)
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    assert Point(1, 2) != (1, 2)
    assert len({Point(1, 2), Point(1, 2), Point(1)}) == 2
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"
