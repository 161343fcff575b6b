"""The gate for model files: rules look at each file and answer with findings. Nothing in a file is run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_tools.audit.engine import audit
    from ckpt_tools.audit.findings import Finding
    from ckpt_tools.audit.policy import Options, Policy, load
    from ckpt_tools.audit.results import Audited, exit_code

_WHERE = {
    "engine": ("audit",),
    "findings": ("Finding",),
    "policy": ("Options", "Policy", "load"),
    "results": ("Audited", "exit_code"),
}

__all__ = ["Audited", "Finding", "Options", "Policy", "audit", "exit_code", "load"]


def __getattr__(name: str) -> object:
    """The public names, each imported when it is first used."""
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"ckpt_tools.audit.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
