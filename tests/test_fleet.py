"""Work on many items: in order, errors as results, a killed process costs its item and nothing else."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ckpt_tools.errors
from ckpt_tools import fleet
from ckpt_tools.errors import CkptError, CorruptFile, MissingDependency
from ckpt_tools.fleet import run_all

# what the processes can import
HELPERS = """
import os, signal, sys, time
from ckpt_tools.errors import CorruptFile, MissingDependency

def root(number):
    if number < 0:
        raise CorruptFile("is negative", path=str(number), offset=3, remedy="Take another")
    return number ** 0.5

def missing(extra):
    raise MissingDependency("thing", extra, "this")

def slow_first(number):
    time.sleep(0.3 if number == 0 else 0)
    return number, os.getpid()

def end(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        os._exit(7)
    return number

def mark(folder, number):
    path = os.path.join(folder, f"{number}")
    try:
        open(path + ".begun", "w").close()
        time.sleep(60 if number else 0)
    finally:
        os.rename(path + ".begun", path + ".tidied")

def noisy(number):
    print("to standard output")
    os.write(1, b"again")
    return number, sys.stdin.read()

def unpicklable(number):
    return lambda: number
"""


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "fleet_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import fleet_helpers

    yield fleet_helpers
    del sys.modules["fleet_helpers"]


def told(outcomes: Iterator[Any]) -> list[Any]:
    return [str(outcome) if isinstance(outcome, CkptError) else outcome for outcome in outcomes]


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_and_errors_come_in_order(helpers: Any, jobs: int) -> None:
    outcomes = list(run_all(helpers.root, [4, -1, 9, "x"], jobs=jobs))
    assert [outcomes[0], outcomes[2]] == [2.0, 3.0]
    assert isinstance(outcomes[1], CorruptFile)
    assert str(outcomes[1]) == "-1, byte 3: is negative. Take another"
    assert str(outcomes[3]).startswith("internal error: TypeError: '<' not supported")
    assert list(run_all(helpers.root, [], jobs=jobs)) == []
    assert isinstance(next(run_all(helpers.missing, ["audio"], jobs=jobs)), MissingDependency)


def test_a_slow_first_item_holds_back_the_results_and_not_the_work(helpers: Any) -> None:
    outcomes = list(run_all(helpers.slow_first, range(4), jobs=2))
    assert [number for number, _ in outcomes] == [0, 1, 2, 3]
    pids = [pid for _, pid in outcomes]
    assert os.getpid() not in pids
    assert pids[1] == pids[2] == pids[3] != pids[0]


def test_items_are_taken_as_they_are_needed(helpers: Any) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    outcomes = run_all(helpers.root, items(), jobs=2)
    next(outcomes)
    assert len(taken) <= 2 * fleet.AHEAD + 1
    assert len(list(outcomes)) == 99


def test_the_end_of_a_process_costs_its_item(helpers: Any) -> None:
    for jobs in (2, 3):
        assert told(run_all(helpers.end, range(6), jobs=jobs)) == [
            0,
            1,
            "the process that worked on it was killed by signal 9. "
            "It may have run out of memory; try again with fewer --jobs",
            "the process that worked on it ended with exit code 7",
            4,
            5,
        ]


def test_a_process_killed_at_rest_costs_nothing(helpers: Any) -> None:
    worker: Any = fleet._Worker(partial(fleet.outcome, helpers.slow_first))
    _, first = worker.do(1)
    os.kill(first, signal.SIGKILL)
    while worker._process.poll() is None:
        time.sleep(0.01)
    number, second = worker.do(2)
    assert (number, second != first) == (2, True)
    worker.stop()
    worker.close()


def test_processes_that_are_no_longer_wanted_tidy_up_and_end(helpers: Any, tmp_path: Path) -> None:
    outcomes = run_all(partial(helpers.mark, str(tmp_path)), range(3), jobs=2)
    assert next(outcomes) is None
    while len(list(tmp_path.glob("*.begun"))) < 2:
        time.sleep(0.01)
    outcomes.close()
    assert sorted(path.name for path in tmp_path.glob("*.*ed")) == ["0.tidied", "1.tidied", "2.tidied"]


def test_processes_have_no_part_in_standard_input_and_output(helpers: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(run_all(helpers.noisy, [0, 0], jobs=2)) == [(0, ""), (0, "")]
    captured = capfd.readouterr()
    assert captured.out == ""
    # what cannot come back ends the process
    (error,) = told(run_all(helpers.unpicklable, [1], jobs=2))
    assert error == "the process that worked on it ended with exit code 1"
    assert "Can't pickle" in capfd.readouterr().err


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert list(run_all(len, ["abc"], jobs=2)) == [3]


ERRORS = [cls for cls in vars(ckpt_tools.errors).values() if isinstance(cls, type) and issubclass(cls, CkptError)]


def test_every_error_goes_through_a_pipe() -> None:
    for error in (
        CorruptFile("broken", path="a", member="b", offset=3, remedy="Mend it"),
        MissingDependency("dask", "dask", "this"),
        *(
            cls("x", path="p")
            for cls in vars(ckpt_tools.errors).values()
            if isinstance(cls, type) and cls is not MissingDependency
        ),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
    assert ckpt_tools.errors.LimitExceeded in CorruptFile.__subclasses__()


# --- Dask


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"needs the package distributed.*ckpt-tools\[dask\]"):
        next(run_all(len, ["abc"], dask="localhost:1"))


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(fleet, "CONNECT", 0.5)
    for address in ("127.0.0.1:1", "nonsense://x"):
        with pytest.raises(CkptError, match="no Dask scheduler answers there"):
            next(run_all(len, ["abc"], dask=address))


def test_a_cluster_works_like_processes(helpers: Any) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options, host="127.0.0.1") as cluster:
        address = cluster.scheduler_address
        outcomes = list(run_all(helpers.root, [4, -1, 9], dask=address))
        assert [outcomes[0], outcomes[2]] == [2.0, 3.0]
        assert str(outcomes[1]) == "-1, byte 3: is negative. Take another"
        assert isinstance(next(run_all(helpers.missing, ["audio"], dask=address)), MissingDependency)
        ended = told(run_all(helpers.end, [0, 2, 4], dask=address))
        assert [ended[0], ended[2]] == [0, 4]
        assert ended[1].startswith("the cluster gave it up: KilledWorker")
