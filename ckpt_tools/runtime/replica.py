"""Copies of models on which to experiment, so that the model itself stays as it is."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ckpt_tools.errors import CkptError

Model = TypeVar("Model", bound=nn.Module)


def replica(model: Model, *, empty_parameters: bool = False, empty_buffers: bool = False) -> Model:
    """A deep copy of *model*; what is *empty* has shape and type but no data (it is on the meta device).

    Shared parameters and modules stay shared. Raises `CkptError` where an attribute cannot be copied.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        if empty_parameters:
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in memo:
                    memo[id(parameter)] = empty_like(parameter)
        if empty_buffers:
            for buffer in module._buffers.values():
                if buffer is not None:
                    memo[id(buffer)] = buffer.detach().to("meta")
        for value in vars(module).values():
            if isinstance(value, Tensor):
                if empty_buffers:
                    memo[id(value)] = value.detach().to("meta")
                elif not value.is_leaf:  # what weight_norm computes; deepcopy refuses it
                    memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CkptError(f"the model cannot be copied: {type(error).__name__}: {error}") from error


def empty_like(parameter: nn.Parameter) -> nn.Parameter:
    """The same parameter on the meta device."""
    if nn.parameter.is_lazy(parameter):
        return type(parameter)(requires_grad=parameter.requires_grad, device="meta", dtype=parameter.dtype)
    if parameter.is_meta and parameter.layout == torch.strided:
        # empty_like of what is there already would bring in sympy
        made = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta")
    else:
        made = torch.empty_like(parameter, device="meta")
    return nn.Parameter(made, requires_grad=parameter.requires_grad)
