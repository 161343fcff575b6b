"""Where tensors that do not fit come from, told by their names and shapes: pruning, quantization, LoRA, another size.

Each function here explains part of what is missing, unexpected or of another shape, and gives the names that it
explains, so that these are not told again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from ckpt_tools.analysis.holding import last_layer
from ckpt_tools.records import record
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.reload import Mismatch
from ckpt_tools.runtime.verify.subject import shape
from ckpt_tools.verification.results import Problem

Shapes = Mapping[str, tuple[int, ...]]

_LORA = r"(^|\.)(lora_[A-Z]|lora_embedding_[A-Z]|lora_magnitude_vector)(\.|$)"
_BASE_LAYER = "base_layer."

# torch/ao/nn/quantized, and what bitsandbytes puts beside a weight
_PACKED = (
    r"^(.*?)\.?(_packed_params\.\w+|scale|zero_point|SCB|weight_format"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+))$"
)

# torch/nn/utils/prune.py, spectral_norm.py, weight_norm.py and parametrize.py: what stands in the place of weight
_PARTS = (
    ("pruned-weights", "torch.nn.utils.prune", ("{}_orig", "{}_mask")),
    ("reparametrized-weights", "spectral_norm", ("{}_orig", "{}_u", "{}_v")),
    ("reparametrized-weights", "spectral_norm", ("{}_orig", "{}_u")),
    ("reparametrized-weights", "weight_norm", ("{}_g", "{}_v")),
)
_PARAMETRIZED = r"^(.*?)parametrizations\.([^.]+)\..+$"


@record
class Origin:
    """A problem, and the *names* of the file and of the class that it explains."""

    problem: Problem
    names: frozenset[str]


def adapter(names: Sequence[str]) -> Problem | None:
    """That the file holds nothing but LoRA's matrices, which are no model."""
    if names and all(re.search(_LORA, name) for name in names):
        return Problem(
            "lora-weights",
            "error",
            f"it holds the matrices of LoRA alone ({listed(names, 2)}), which change a model that is not in it",
            "Load the base model first and put these on it: PeftModel.from_pretrained(base, folder); "
            "merge_and_unload() makes a model of both, whose state_dict can be saved",
        )
    return None


def origins(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Iterator[Origin]:
    """What explains names that only the class has (*missing*) or only the file (*unexpected*), surest first.

    *own* are the shapes of the class, *file* those of the file, under the names of the class where they are mended.
    """
    for find in (_averages, _lora, _quantized, _parts, _parts_of_class, _statistics, _head):
        found = find(missing, unexpected, own, file)
        if found is not None:
            yield found
            missing = [name for name in missing if name not in found.names]
            unexpected = [name for name in unexpected if name not in found.names]


def _averages(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Origin | None:
    # mmengine and mmcv keep the moving average of each tensor beside it, in a buffer whose name has no dots
    flat = {f"ema_{name.replace('.', '_')}" for name in own}
    found = [name for name in unexpected if name in flat]
    if not found:
        return None
    problem = Problem(
        "averages-beside",
        "error",
        f"the file has the moving averages of {count(len(found), 'tensor')} beside these ({listed(found, 2)})",
        "Which of the two are the better weights is for who trained it to say, often the averages; "
        "--allow-unexpected 'ema_*' goes on with the others",
    )
    return Origin(problem, frozenset(found))


def _lora(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Origin | None:
    matrices = [name for name in unexpected if re.search(_LORA, name)]
    if not matrices:
        return None
    bases = [name for name in unexpected if _BASE_LAYER in name]
    theirs = {name.replace(_BASE_LAYER, "") for name in bases}
    problem = Problem(
        "lora-weights",
        "error",
        f"it holds {count(len(matrices), 'matrix', 'matrices')} of LoRA beside the weights ({listed(matrices, 2)}): "
        "without them the model is the one before fine-tuning",
        "Save after model = model.merge_and_unload(), or load into a model that get_peft_model has wrapped alike",
    )
    return Origin(problem, frozenset([*matrices, *bases, *theirs.intersection(missing)]))


def _quantized(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Origin | None:
    layers = {}
    for name in unexpected:
        found = re.match(_PACKED, name)
        if found:
            layers[name] = found[1]
    if not layers:
        return None
    lost = [name for name in missing if name.rpartition(".")[0] in layers.values()]
    kinds = sorted(set(layers.values()))
    problem = Problem(
        "quantized-weights",
        "error",
        f"{count(len(kinds), 'layer')} {'is' if len(kinds) == 1 else 'are'} quantized in the file "
        f"({listed(kinds, 3)}), and not in the class",
        "Quantize the class in the same way before loading (torch.ao.quantization, or the library that did it), or "
        "save the weights before they are quantized",
    )
    return Origin(problem, frozenset([*layers, *lost]))


def _parts(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Origin | None:
    told = _in_parts(missing, unexpected)
    if told is None:
        return None
    code, who, weights, parts = told
    problem = Problem(
        code,
        "error",
        f"{listed(weights, 3)} {'is' if len(weights) == 1 else 'are'} in the file in the parts that {who} makes of "
        f"{'it' if len(weights) == 1 else 'them'} ({listed(parts, 3)}), and whole in the class",
        "ckpt convert --bake writes the weights that they come to; or apply the same to the class before loading",
    )
    return Origin(problem, frozenset([*weights, *parts]))


def _parts_of_class(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Origin | None:
    told = _in_parts(unexpected, missing)
    if told is None:
        return None
    _, who, weights, parts = told
    problem = Problem(
        "class-reparametrized",
        "error",
        f"the class has {listed(weights, 3)} in the parts that {who} makes ({listed(parts, 3)}), and the file whole",
        f"Load first, and apply {who} afterwards",
    )
    return Origin(problem, frozenset([*weights, *parts]))


def _in_parts(whole: Sequence[str], parts: Sequence[str]) -> tuple[str, str, list[str], list[str]] | None:
    """The code, who did it, which of *whole* stand among *parts* in parts, and these."""
    known = set(parts)
    for code, who, patterns in _PARTS:
        found = [name for name in whole if all(pattern.format(name) in known for pattern in patterns)]
        if found:
            return code, who, found, [pattern.format(name) for name in found for pattern in patterns]
    parametrized: dict[str, list[str]] = {}
    for name in parts:
        match = re.match(_PARAMETRIZED, name)
        if match and match[1] + match[2] in whole:
            parametrized.setdefault(match[1] + match[2], []).append(name)
    if parametrized:
        of_these = [part for names in parametrized.values() for part in names]
        return "reparametrized-weights", "torch.nn.utils.parametrize", list(parametrized), of_these
    return None


def _statistics(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Origin | None:
    found = [name for name in missing if name.endswith((".running_mean", ".running_var"))]
    if not found or len(found) < len([name for name in own if name.endswith((".running_mean", ".running_var"))]):
        return None
    problem = Problem(
        "batchnorm-statistics-missing",
        "error",
        f"the file has none of the statistics of BatchNorm ({count(len(found), 'tensor')}: {listed(found, 2)}): what "
        "was saved is parameters() or named_parameters(), which leave buffers out. In eval mode the model would "
        "normalize by a mean of 0 and a variance of 1",
        "Save model.state_dict(); where the training data is at hand, running it in train mode makes statistics again",
    )
    return Origin(problem, frozenset(found))


def _head(missing: Sequence[str], unexpected: Sequence[str], own: Shapes, file: Shapes) -> Origin | None:
    head = last_layer(own)
    weight = f"{head}.weight".removeprefix(".")
    if head is None or weight not in missing or any(name.rpartition(".")[0] != head for name in missing):
        return None
    other = last_layer({name: file[name] for name in unexpected if name in file})
    theirs = [name for name in unexpected if other is not None and name.rpartition(".")[0] == other]
    instead = f", which has `{other}` with {file[f'{other}.weight'][0]:,} outputs instead" if other is not None else ""
    problem = Problem(
        "head-missing",
        "error",
        f"the head `{head}` of the class is not in the file{instead}",
        f"Train the head; or, where that is meant: --allow-missing '{head}.*'"
        + (f" --allow-unexpected '{other}.*'" if other is not None else ""),
    )
    return Origin(problem, frozenset([*missing, *theirs]))


# --- shapes


def of_shapes(mismatched: Sequence[Mismatch], model: nn.Module) -> Iterator[Problem]:
    """What tensors of another shape come from, one problem for all that are so in the same way."""
    kinds: dict[str, list[Mismatch]] = {}
    embeddings, first = set(), ""
    for name, module in model.named_modules():
        weight = f"{name}.weight".removeprefix(".")
        if isinstance(module, nn.Embedding):
            embeddings.add(weight)
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not first:
            first = weight
    for mismatch in mismatched:
        kinds.setdefault(_kind(mismatch, first, embeddings), []).append(mismatch)
    for kind, found in kinds.items():
        shown = "; ".join(
            f"{m.name} {shape(m.file_shape)} in the file, {shape(m.class_shape)} in the class" for m in found[:4]
        )
        more = f"; and {len(found) - 4:,} more" if len(found) > 4 else ""
        code, words, remedy = _SHAPES[kind]
        verb = "has" if len(found) == 1 else "have"
        axis = 0 if kind == "vocabulary" else 1
        values = {"theirs": found[0].file_shape[axis:][:1], "ours": found[0].class_shape[axis:][:1]}
        sizes = {side: size[0] if size else 0 for side, size in values.items()}
        yield Problem(
            code,
            "error",
            f"{count(len(found), 'tensor')} {verb} another shape: {shown}{more}{words.format(**sizes)}",
            remedy.format(**sizes),
        )


def _kind(mismatch: Mismatch, first: str, embeddings: set[str]) -> str:
    theirs, ours = mismatch.file_shape, mismatch.class_shape
    if len(theirs) == len(ours):
        apart = [at for at, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b]
        if mismatch.name == first and apart == [1]:
            return "channels"
        if mismatch.name in embeddings and apart == [0]:
            return "positions-rows" if "position" in mismatch.name else "vocabulary"
        if re.search(r"pos(ition(al)?)?_embed(ding)?s?$", mismatch.name) and apart == [1] and len(ours) == 3:
            return "positions"
    if sorted(theirs) == sorted(ours):
        return "order"
    return "elements" if math.prod(theirs) == math.prod(ours) else "other"


_SHAPES = {
    "channels": (
        "input-channels",
        ": the first layer takes {theirs:,} channels in the file and {ours:,} in the class",
        "Give the class the same first layer before loading: one of {theirs:,} input channels",
    ),
    "vocabulary": (
        "vocabulary-size",
        ": the table has {theirs:,} rows in the file and {ours:,} in the class",
        "Build the class with a vocabulary of {theirs:,} (tokens were added, or it is another tokenizer); in "
        "transformers, resize_token_embeddings({theirs})",
    ),
    "positions": (
        "input-size",
        ": {theirs:,} positions in the file and {ours:,} in the class, which is another size of input, or of patches",
        "Build the class for the size that it was trained with (img_size or image_size), or interpolate the positions",
    ),
    "positions-rows": (
        "input-size",
        ": the class takes inputs of another length",
        "Build the class for the length that it was trained with",
    ),
    "order": (
        "axes-permuted",
        ": the same sizes in another order",
        "The file was probably converted from TensorFlow, Keras or JAX, or a weight was stored transposed: put the "
        "axes in torch's order (out, in, height, width) before loading",
    ),
    "elements": (
        "shape-mismatch",
        ": the same number of elements in another shape",
        "Such are a 1×1 convolution and a linear layer: see which of them the class had when the file was saved",
    ),
    "other": ("shape-mismatch", "", "Build the class with the arguments that it had when the file was saved"),
}
