"""What a file's name says of the run: ``epoch=3-val_loss=0.12.ckpt``, ``checkpoint_model_3_0.3_0.9.pt``."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import NamedTuple

# text until a name has digits to look at: compiling takes longer than reading most files
_SUFFIX = r"(?i)(\.(pt|pth|ckpt|bin|tar|pkl|pickle|safetensors|zip|model))+$"
_LABELLED = (
    r"(?i)(?<![A-Za-z])(epoch|ep|e|step|iter|iteration|it|loss|acc|accuracy|val_loss|val_acc|lr|map|f1|auc|best)"
    r"(?:s)?[=_\-]?(\d+(?:\.\d+)?(?:e-?\d+)?)(?![A-Za-z0-9])"
)
_EQUALS = r"(?:^|[-_.,])([A-Za-z][A-Za-z0-9_/]*)=(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
_BARE = r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)(?![A-Za-z0-9])"
_HASH = r"-([0-9a-f]{8,64})$"
_LONG = {"ep": "epoch", "e": "epoch", "iter": "step", "it": "step", "iteration": "step", "acc": "accuracy"}


class NameHint(NamedTuple):
    """A value that the file's name seems to give. *guess* is true where the label is a guess by position."""

    label: str
    value: float | int | str
    guess: bool


def name_hints(path: str) -> tuple[NameHint, ...]:
    """The hints in the last part of *path*, labelled ones first.

    Unlabelled numbers are taken by position, as people write them: a whole number is the epoch, the first
    fraction after it a loss, a second one a metric; these are guesses and marked so.
    """
    name = os.path.basename(path)
    return _hints(name) if any(character.isdigit() for character in name) else ()


@lru_cache(maxsize=256)  # the files of one run have the names of those of the next
def _hints(name: str) -> tuple[NameHint, ...]:
    stem = re.sub(_SUFFIX, "", name)
    hash_match = re.search(_HASH, stem)
    hints: list[NameHint] = []
    if hash_match and not hash_match[1].isdecimal():
        # torch.hub checks downloads against it
        hints.append(NameHint("sha256 prefix", hash_match[1], False))
        stem = stem[: hash_match.start()]
    seen: set[str] = set()
    for pattern in (_EQUALS, _LABELLED):
        for match in re.finditer(pattern, stem):
            label = _LONG.get(match[1].lower(), match[1].lower().lstrip("_"))
            if label not in seen:
                seen.add(label)
                hints.append(NameHint(label, _number(match[2]), False))
        stem = re.sub(pattern, "-", stem)
    if not seen:
        numbers = re.findall(_BARE, stem)
        whole = [n for n in numbers if "." not in n]
        fractions = [n for n in numbers if "." in n]
        if fractions and len(whole) <= 1 and len(numbers) > 1:
            labels = [*(["epoch"] if whole else []), "loss", "metric"]
            hints += [
                NameHint(label, _number(text), True) for label, text in zip(labels, whole + fractions, strict=False)
            ]
    return tuple(hints)


def _number(text: str) -> float | int:
    return float(text) if "." in text or "e" in text.lower() else int(text[:18])
