"""What a global that a pickle names would do: which are dangerous, which torch takes, which are classes.

Unknown is never safe.
"""

from __future__ import annotations

from typing import Literal

from ckpt_tools.checkpoint import Pickle
from ckpt_tools.pickles.weights_only import ALLOWED_GLOBALS
from ckpt_tools.records import record

Answer = Literal["tensors only", "needs classes", "dangerous", "unknown"]


@record
class NameVerdict:
    """A global: *allowed* where torch's weights_only takes it, *danger* why it is dangerous, else "";
    *purpose* what it is used for, such as "a nn.Module class" or "a numpy scalar".
    """

    name: str
    offset: int
    allowed: bool
    danger: str = ""
    purpose: str = ""


@record
class PickleVerdict:
    """The answer for one pickle. *reasons* say why it is dangerous or cannot be judged ("unknown")."""

    member: str
    answer: Answer
    names: tuple[NameVerdict, ...] = ()
    reasons: tuple[str, ...] = ()


def judge(pickle: Pickle) -> PickleVerdict:
    """Which of the answers *pickle* gets."""
    names = tuple(NameVerdict(str(use), use.offset, str(use) in ALLOWED_GLOBALS) for use in pickle.globals)
    return PickleVerdict(pickle.member, "tensors only" if all(n.allowed for n in names) else "needs classes", names)
