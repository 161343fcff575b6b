"""Comparing in forked processes, which look at mapped files: the same numbers, and clear errors for a file cut."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

MAKE = """
import sys
from pathlib import Path
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from ckpt_tools import open_checkpoint
from ckpt_tools.analysis import comparison, pairs as pairing, streaming

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
before, after = {}, {}
for name, count in (("a.large", 300_001), ("b.middle", 65_537), ("c.small", 7), ("d.empty", 0)):
    numbers = rng.standard_normal(count)
    moved = numbers + 1e-3 * rng.standard_normal(count)
    for dtype in ("f4", "f8", "f2", "i8", "i4", "u1", "?", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "c8"):
        key = f"{name}.{np.dtype(dtype).name}"
        scale = 1 if np.dtype(dtype).kind in "fVc" else 100
        before[key], after[key] = ((scale * x).astype(dtype) for x in (abs(numbers), abs(moved)))
        if np.dtype(dtype).kind in "fi":
            before[key], after[key] = ((scale * x).astype(dtype) for x in (numbers, moved))
before["same"] = after["same"] = rng.standard_normal(100_000).astype("f4")
before["nan"] = rng.standard_normal(100_000).astype("f4")
before["nan"][[5, 70_000]] = np.nan
after["nan"] = before["nan"].copy()
after["nan"][6] = np.inf
if sys.argv[2] == "crooked":  # an odd byte before them: what follows is at no multiple of its size
    before, after = ({"0": np.zeros(3, "u1"), **tensors} for tensors in (before, after))
for name, tensors in (("before", before), ("after", after)):
    save_file(tensors, folder / f"{name}.safetensors")

def pairs():
    sides = [open_checkpoint(folder / f"{name}.safetensors").model_state_dict().tensors for name in ("before", "after")]
    return [(a, b, None) for a, b in zip(*sides, strict=True)]

comparison.WORTH_A_FORK = 1
pairing.SPAN = 1 << 18
forks = []
in_forks = comparison.in_forks
comparison.in_forks = lambda *given: forks.append(given[2]) or in_forks(*given)
"""


def outcome(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", MAKE + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.strip()


@pytest.mark.parametrize("offsets", ["straight", "crooked"])
def test_the_same_is_found_as_in_one_process(tmp_path: Path, offsets: str) -> None:
    program = """
alone = list(comparison.compare_all(pairs(), threads=1))
told = []
together = list(comparison.compare_all(pairs(), threads=3, advance=told.append))
assert forks == [3], forks
assert [repr(found) for found in alone] == [repr(found) for found in together]
assert sum(told) == comparison.bytes_to_compare(pairs())
assert sum(found.identical for found in together) >= 11, together
assert sum(found.max_abs > 0 for found in together) >= 20
assert sum(found.nans == (2, 2) and found.infs == (0, 1) for found in together) == 1
quickly = list(comparison.compare_all(pairs(), threads=3, values=False))
assert forks == [3, 3], forks
assert [found.identical for found in quickly] == [found.identical for found in alone]
print(len(together))
"""
    assert int(outcome(program, str(tmp_path), offsets)) == (43 if offsets == "crooked" else 42)


def test_no_more_of_a_pair_is_read_than_to_its_first_difference(tmp_path: Path) -> None:
    program = """
import os
big = np.zeros(4_000_000, "f4")
save_file({"x": big}, folder / "before.safetensors")
big[3] = 1
save_file({"x": big}, folder / "after.safetensors")
told = []
read = pairing.Pair.read
log = folder / "log"
def logged(self, left, right, scratch):
    with open(log, "a") as file:
        print(left.start, file=file)
    return read(self, left, right, scratch)
pairing.Pair.read = logged
(found,) = comparison.compare_all(pairs(), threads=2, values=False, advance=told.append)
assert forks == [2] and not found.identical
assert sum(told) == 32_000_000
print(len(log.read_text().split()), 4_000_000 * 4 // pairing.SPAN)
"""
    begun, pieces = map(int, outcome(program, str(tmp_path), "straight").split())
    assert begun < pieces


def test_a_file_that_is_cut_before_it_is_looked_at(tmp_path: Path) -> None:
    program = """
known = pairs()
path = folder / "after.safetensors"
os.truncate(path, path.stat().st_size - 1_000)
results = list(comparison.compare_all(known, threads=2))
errors = [found for found in results if isinstance(found, Exception)]
assert forks == [2]
print(len(results) - len(errors), {type(error).__name__ for error in errors}, str(errors[-1]).split("after")[-1])
"""
    done, kind, said = outcome("import os" + program, str(tmp_path), "straight").split(maxsplit=2)
    assert int(done) > 20
    assert kind == "{'CorruptFile'}"
    assert said.endswith("ends here now: it was cut while it was being read")


def test_a_file_that_is_cut_while_it_is_looked_at(tmp_path: Path) -> None:
    program = """
import os
known = pairs()
path = folder / "after.safetensors"
mapped = streaming.Span._mapped
def cut(self, descriptor):
    found = mapped(self, descriptor)
    if found is not None and self.path == str(path) and self.start == 0 and self.nbytes == 1 << 18:
        os.truncate(path, 4096)
    return found
streaming.Span._mapped = cut
results = list(comparison.compare_all(known, threads=2))
errors = [str(found) for found in results if isinstance(found, Exception)]
print(*sorted({error.split("safetensors")[-1] for error in errors}), sep="|")
"""
    said = outcome(program, str(tmp_path), "straight")
    assert (
        ": the process that read it lost the file: it was cut, or its disk failed, while it was being read"
        in said.split("|")
    )
