"""Fixtures that every test may use."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run, and no verdict that depends on how busy the machine is.
settings.register_profile("ckpt-tools", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ckpt-tools")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu") and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no CUDA device")


@dataclass(frozen=True)
class Outcome:
    """What one run of the command line left behind."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def run() -> Callable[..., Outcome]:
    """``run("inspect", path)`` runs the command line in a process of its own.

    *env* adds to the environment, or takes a variable away where its value is None; *stdin* is bytes.
    """

    def run(
        *args: str | Path,
        stdin: bytes = b"",
        cwd: Path | None = None,
        env: dict[str, str | None] | None = None,
    ) -> Outcome:
        variables = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100", "PYTHONUTF8": "1", **(env or {})}
        process = subprocess.run(
            [sys.executable, "-m", "ckpt_tools", *map(str, args)],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env={name: value for name, value in variables.items() if value is not None},
            timeout=300,  # a hang fails its own test, not the whole session
        )
        return Outcome(process.returncode, process.stdout.decode("utf-8"), process.stderr.decode("utf-8"))

    return run


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The committed small files."""
    return ROOT / "fixtures"


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real files that CKPT_TOOLS_CORPUS names."""
    folder = os.environ.get("CKPT_TOOLS_CORPUS")
    if not folder:
        pytest.skip("CKPT_TOOLS_CORPUS is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """The torch that is installed."""
    return pytest.importorskip("torch")
