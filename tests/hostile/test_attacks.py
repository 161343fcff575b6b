"""The audit finds every attack of `tests.hostile.attacks`, and says what it is."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from pathlib import Path

import pytest

from ckpt_tools.audit.dangers import Danger, PickleVerdict
from ckpt_tools.audit.engine import audit
from ckpt_tools.audit.results import Audited, exit_code
from tests.hostile.attacks import ATTACK_NAMES, Attack, attacks, by_name

REQUIRED = """
CVE-2025-1716 CVE-2025-1889 CVE-2025-1944 CVE-2025-1945 CVE-2025-10155 CVE-2025-10156 CVE-2025-10157 CVE-2025-32434
CVE-2026-24747 GHSA-mxhj-88fx-4pcv GHSA-mhc9-48gj-9gp3 GHSA-cffv-grgg-g429 modelscan#85 modelscan#330 modelscan#338
modelscan#354 picklescan#14
"""
"""What the audit was asked to stand up to."""


def written(attack: Attack, folder: Path) -> str:
    """The path of *attack*, put into *folder*."""
    path = folder / f"model{attack.suffix}"
    if attack.files:
        path.mkdir()
        for name, data in attack.files:
            (path / name).write_bytes(data)
    else:
        path.write_bytes(attack.data)
    return str(path)


def audited(attack: Attack, folder: Path) -> list[Audited]:
    return list(audit([written(attack, folder)]))


def dangers(verdict: PickleVerdict) -> list[Danger]:
    return [*verdict.dangers, *(danger for one in verdict.nested for danger in dangers(one))]


@pytest.mark.parametrize("attack", ATTACK_NAMES)
def test_it_is_found(attack: str, tmp_path: Path) -> None:
    tried = by_name(attack)
    results = audited(tried, tmp_path)
    assert [result.failure for result in results if result.failure] == []
    errors = {finding.code for result in results for finding in result.findings if finding.severity == "error"}
    assert tried.code in errors
    if tried.answer:
        assert tried.answer in {result.answer for result in results}
    assert exit_code(results, "error") == 1
    for result in results:
        for verdict in result.verdicts:
            # an answer follows from its reasons
            assert any(verdict.reasons) == (verdict.answer in ("dangerous", "unknown"))
            assert (verdict.answer == "dangerous") == bool(dangers(verdict))
            assert verdict.answer != "tensors only" or all(name.allowed for name in verdict.names)


class Stub:
    """Stands for whatever a pickle names; takes every call and state, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Stub:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Stub:
        return Stub()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def extend(self, items: object) -> None:
        """APPENDS."""

    append = extend


class Unpickler(pickle.Unpickler):
    """Python's own, which resolves nothing but keeps the names that it is asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> object:
        module, name = NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)
        self.names.add(f"{module}.{name}")
        return type("Stubbed", (Stub,), {"__setstate__": Stub.__setstate__})

    def persistent_load(self, pid: object) -> object:
        return Stub()


@pytest.mark.parametrize("attack", [name for name in ATTACK_NAMES if by_name(name).suffix == ".pkl"])
def test_every_name_that_python_would_look_up_is_judged(attack: str, tmp_path: Path) -> None:
    tried = by_name(attack)
    unpickler = Unpickler(tried.data)
    with contextlib.suppress(Exception):  # what breaks off has looked up what stands before
        unpickler.load()
    judged = {name.name for result in audited(tried, tmp_path) for verdict in result.verdicts for name in verdict.names}
    assert unpickler.names <= judged


def test_python_looks_names_up() -> None:
    """What the test above rests on: most of the streams get as far as to look up a name."""
    without = 0
    for attack in attacks():
        unpickler = Unpickler(attack.data)
        with contextlib.suppress(Exception):
            unpickler.load()
        without += attack.suffix == ".pkl" and not unpickler.names
    assert without < len(ATTACK_NAMES) // 20


def test_each_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(attack.name for attack in attacks()).items() if count > 1] == []


def test_what_was_asked_for_is_cited() -> None:
    cited = {cite for attack in attacks() for cite in attack.cites}
    assert set(REQUIRED.split()) - cited == set()
    assert all(
        re.fullmatch(r"(CVE-\d{4}-\d+|GHSA(-[0-9a-z]{4}){3}|[a-z]+#\d+|arXiv:[\d.]+|nullifAI)", c) for c in cited
    )
