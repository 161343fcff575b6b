"""The only door to torch: building a model from its class, filling it from a description, running it.

Everything here runs code that the user named, and nothing else in the package imports it but the command
line, inside the commands that were asked to.
"""

from __future__ import annotations

from ckpt_tools.errors import MissingDependency

try:
    import torch as torch
except ImportError:
    raise MissingDependency("torch", "torch", "building a model from its class") from None
