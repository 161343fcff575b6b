"""Multiply-adds, counted where they happen: at torch's operators, not at modules.

The rule, for one call of an operator:

========================================  ===========================================================
convolution                               each weight once per output position, and one per output
                                          element for the bias; transposed: each weight once per *input*
                                          position
linear, matrix products                   one for each product; one per output element for the bias or
                                          the added matrix
attention (scaled dot product)            the products of its two matrix products, whatever is masked
recurrent layers (LSTM, GRU, RNN)         each weight and bias once per time step and sample
normalizations, PReLU                     each weight and bias once per index of the first dimension
everything else                           nothing
========================================  ===========================================================

That agrees with torchinfo 1.8 on convolutional networks, its convention for normalizations included (the
scaling itself, one for each element, is left out by both). Where torchinfo is wrong, this differs from it:

- torchinfo goes by the parameters of modules, so it sees no product that is not one of a leaf module with its
  own weight: nothing of MultiheadAttention (projections, scores, output projection), nothing of
  ``F.linear(x, self.weight)`` in a module with children, of ``x @ y``, of a parametrized (weight-normed) layer.
- for a Linear it multiplies with the batch alone: of inputs with more dimensions, such as (batch, tokens,
  features), it counts one token.
- for a transposed convolution it multiplies with the output's positions.
- an Embedding is a look-up; torchinfo counts its whole table once per sample.
- for the packed sequences of recurrent layers, and their cells, it multiplies with the wrong sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Rule = Callable[..., int]
aten = torch.ops.aten


class MultAdds(TorchDispatchMode):  # type: ignore[misc]  # torch's types are not read
    """Tells *tally* the multiply-adds of each operator that runs while it is active.

    It sees whole ``linear``, ``lstm`` or ``scaled_dot_product_attention`` calls under ``torch.inference_mode``
    only; elsewhere autograd has taken them apart before.
    """

    def __init__(self, tally: Callable[[int], None]) -> None:
        super().__init__()
        self._tally = tally

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # else the first operator waits seconds for torch.compile's machinery to be imported
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(getattr(func, "overloadpacket", None))
        if rule is not None:
            out = func(*args, **kwargs)
            self._tally(rule(out, *args, **kwargs))
            return out
        if isinstance(func, torch._ops.OpOverload):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)


def _numel(*values: object) -> int:
    return sum(int(value.numel()) for value in values if isinstance(value, Tensor))


def _rows(tensor: Tensor) -> int:
    return _numel(tensor) // max(int(tensor.shape[-1]), 1)


def _convolution(
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *rest: object,
) -> int:
    side = input if transposed else out
    positions = _numel(side) // max(int(side.shape[1]), 1)
    return positions * _numel(weight) + (_numel(out) if bias is not None else 0)


def _linear(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
    return _rows(input) * _numel(weight, bias)


def _product(out: Tensor, a: Tensor, b: Tensor, **options: object) -> int:
    return _numel(a) * (int(b.shape[-1]) if b.dim() > 1 else 1)


def _sum_and_product(out: Tensor, added: Tensor, a: Tensor, b: Tensor, **options: object) -> int:
    return _numel(out) + _product(out, a, b)


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object) -> int:
    return _rows(out) * int(key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _recurrent(out: object, input: Tensor, *rest: object, **options: object) -> int:
    weights = [argument for argument in rest if isinstance(argument, list | tuple)][-1]
    return _rows(input) * _numel(*weights)


def _scaling(place: int) -> Rule:
    """The rule of an operator whose weight and bias are its arguments number *place* and the next."""

    def rule(out: object, *args: Any, **options: object) -> int:
        input = args[0]
        return (int(input.shape[0]) if input.dim() else 1) * _numel(*args[place : place + 2])

    return rule


_RULES: dict[object, Rule] = {
    aten.convolution: _convolution,
    aten.linear: _linear,
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot), _product),
    **dict.fromkeys((aten.addmm, aten.addmv, aten.baddbmm, aten.addbmm), _sum_and_product),
    aten.scaled_dot_product_attention: _attention,
    **dict.fromkeys((aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu), _recurrent),
    **dict.fromkeys((aten.batch_norm, aten.instance_norm, aten.prelu), _scaling(1)),
    **dict.fromkeys((aten.layer_norm, aten.group_norm, aten.rms_norm), _scaling(2)),
}
