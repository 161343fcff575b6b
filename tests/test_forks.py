"""Each test runs a program of its own: this process has threads, and torch, and is not to be forked."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ckpt_tools.forks import together

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")


def outcome(program: str, *arguments: str) -> str:
    """What *program* prints; it may print nothing else, and must leave no process behind."""
    setup = "import os, signal, sys, time\nfrom ckpt_tools.errors import CkptError\nfrom ckpt_tools.forks import *\n"
    check = textwrap.dedent("""
        try:
            os.waitpid(-1, os.WNOHANG)
            print("a process is left")
        except ChildProcessError:
            pass
    """)
    command = [sys.executable, "-W", "error", "-c", setup + textwrap.dedent(program) + check, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.strip()


def test_results_come_in_the_order_of_the_arguments() -> None:
    assert outcome("""
            def slow_at_first(number):
                time.sleep(0.2 if number == 0 else 0)
                return number * number
            print(list(in_forks(slow_at_first, range(40), 3)))
        """) == str([number * number for number in range(40)])


def test_they_work_in_other_processes_and_see_what_this_one_holds() -> None:
    assert (
        outcome("""
            import ckpt_tools.forks as forks
            held = [object(), "text"]
            found = list(in_forks(lambda at: (os.getpid(), held[at], forks.forked), [1] * 8, 2))
            pids = {pid for pid, _, _ in found}
            print(os.getpid() in pids, len(pids) <= 2, {(text, is_fork) for _, text, is_fork in found}, forks.forked)
        """)
        == "False True {('text', True)} False"
    )


def test_none_is_not_worked_on_and_arguments_are_asked_for_a_little_ahead() -> None:
    assert (
        outcome("""
            known = set()
            def arguments():
                for number in range(12):
                    yield None if number in known else number
            found = []
            for result in in_forks(lambda number: number, arguments(), 1):
                found.append(result)
                known |= {6, 7, 11}
            print(found)
        """)
        == "[0, 1, 2, 3, 4, 5, None, None, 8, 9, 10, None]"
    )
    assert outcome("print(list(in_forks(str, [None, None], 2)), list(in_forks(str, [], 2)))") == "[None, None] []"


def test_a_clear_error_is_a_result_and_any_other_is_raised() -> None:
    assert (
        outcome("""
            def work(number):
                if number == 1:
                    raise CkptError("is bad", path="x.pt", offset=7, remedy="Mend it")
                return number
            print(*in_forks(work, range(3), 2))
        """)
        == "0 x.pt, byte 7: is bad. Mend it 2"
    )
    assert (
        outcome("""
            try:
                list(in_forks(lambda number: 1 // number, [1, 0, 1], 2))
            except ZeroDivisionError as error:
                print(error)
        """)
        == "integer division or modulo by zero"
    )


def test_a_large_result_arrives_whole() -> None:
    assert (
        outcome("print([len(text) for text in in_forks(lambda number: 'x' * number, [5_000_000, 1, 3_000_000], 2)])")
        == "[5000000, 1, 3000000]"
    )


@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process that read it was ended by SIGKILL"),
        ("os._exit(3)", "the process that read it ended with exit status 3"),
        (
            "os.kill(os.getpid(), signal.SIGBUS)",
            "the process that read it lost the file: it was cut, or its disk failed, while it was being read",
        ),
    ],
)
def test_the_end_of_a_process_stands_for_its_result_and_the_others_are_worked_on(death: str, said: str) -> None:
    found = outcome(f"""
        def work(number):
            if number == 3:
                {death}
            return number
        print(*in_forks(work, range(9), 2), sep="|")
    """)
    assert found.split("|") == ["0", "1", "2", said, "4", "5", "6", "7", "8"]


def test_who_stops_asking_leaves_no_process_behind() -> None:
    assert (
        outcome("""
            results = in_forks(lambda number: time.sleep(number) or number, [0, 60, 60], 2)
            print(next(results))
            results.close()
        """)
        == "0"
    )


def test_a_parent_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"""
import os, signal
from ckpt_tools.forks import in_forks
def work(number):
    with open({str(pids)!r}, "a") as file:
        print(os.getpid(), file=file)
    return number
results = in_forks(work, range(1000), 2)
next(results)
next(results)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    import time

    deadline = time.monotonic() + 20
    alive = {int(line) for line in pids.read_text().split()}
    assert alive
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if Path(f"/proc/{pid}").exists() and "Z" not in _state(pid)}
        time.sleep(0.01)
    assert not alive


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_no_process_with_threads_or_torch_is_forked() -> None:
    assert (
        outcome("""
            import threading
            print(can_fork())
            done = threading.Event()
            thread = threading.Thread(target=done.wait)
            thread.start()
            print(can_fork())
            done.set()
            thread.join()
            sys.modules["torch"] = sys
            print(can_fork())
        """)
        == "True\nFalse\nFalse"
    )


@pytest.mark.parametrize(
    ("costs", "most", "lists"),
    [
        ([], 9, []),
        ([4, 6, 1, 9], 9, [[4, 6], [1, 9]]),
        ([4, 6, 1, 10, 0, 0], 9, [[4, 6], [1], [10, 0, 0]]),
        ([30, 1, 30], 9, [[30], [1], [30]]),
        ([1, 1, 1, 1, 1], 2, [[1, 1], [1, 1], [1]]),
        ([0, 0, 10, 0], 9, [[0, 0, 10, 0]]),
    ],
)
def test_items_are_handed_over_as_many_at_a_time_as_cost_no_more_than_the_limit(
    costs: list[int], most: int, lists: list[list[int]]
) -> None:
    assert list(together(costs, lambda cost: cost, 10, most)) == lists
