"""Names of tensors that libraries have changed over time, and the one by which each goes now (or went before)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckpt_tools.records import record


@record
class Rename:
    """What one library did at one time: its *code*, *what* it is in words, and the *rules*.

    A rule is a regular expression and what to put in its place. All of them are applied to each name, in order.
    """

    code: str
    what: str
    rules: tuple[tuple[str, str], ...]

    def apply(self, names: Iterable[str]) -> dict[str, str]:
        """The new names of those that it changes."""
        changed = {}
        for name in names:
            new = name
            for pattern, replacement in self.rules:
                new = re.sub(pattern, replacement, new)
            if new != name:
                changed[name] = new
        return changed


# torchvision/models/densenet.py, _load_state_dict: names with a dot are no longer allowed for modules
DENSENET = Rename(
    "densenet-names",
    "DenseNet layers are named as torchvision before 0.3 did (norm.1 for norm1)",
    ((r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2"),),
)

# transformers/modeling_utils.py renames them for every model; others call a layer's scale gamma
GAMMA = Rename(
    "gamma-names",
    "normalization weights are named gamma and beta, as TensorFlow does",
    ((r"(^|\.)gamma$", r"\1weight"), (r"(^|\.)beta$", r"\1bias")),
)

# torch/nn/utils/weight_norm.py and torch/nn/utils/parametrizations.py
OLD_WEIGHT_NORM = Rename(
    "weight-norm-names",
    "weight_norm is the one of torch.nn.utils, in the class that of torch.nn.utils.parametrizations",
    ((r"(^|\.)(\w+)_g$", r"\1parametrizations.\2.original0"), (r"(^|\.)(\w+)_v$", r"\1parametrizations.\2.original1")),
)
NEW_WEIGHT_NORM = Rename(
    "weight-norm-names",
    "weight_norm is the one of torch.nn.utils.parametrizations, in the class that of torch.nn.utils",
    (
        (r"(^|\.)parametrizations\.(\w+)\.original0$", r"\1\2_g"),
        (r"(^|\.)parametrizations\.(\w+)\.original1$", r"\1\2_v"),
    ),
)

_END = r"\.(weight|bias)$"

# timm's checkpoint_filter_fn of each of these models
SWIN = Rename(
    "timm-swin-names",
    "stages downsample at their end, as Swin's authors and timm before 0.9 have it; in the class the next one does so "
    "at its start",
    (
        *((rf"^layers\.{n}\.downsample\.", rf"layers.{n + 1}.downsample.") for n in (2, 1, 0)),
        (rf"^head{_END}", r"head.fc.\1"),
    ),
)
NEW_SWIN = Rename(
    "timm-swin-names",
    "stages downsample at their start, as timm has it since 0.9; in the class the one before does so at its end",
    (
        *((rf"^layers\.{n + 1}\.downsample\.", rf"layers.{n}.downsample.") for n in (0, 1, 2)),
        (rf"^head\.fc{_END}", r"head.\1"),
    ),
)
CONVNEXT = Rename(
    "timm-convnext-names",
    "layers are named as ConvNeXt's authors did (dwconv, pwconv1, downsample_layers), in the class as timm does",
    (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        (rf"^head{_END}", r"head.fc.\1"),
        (rf"^norm{_END}", r"head.norm.\1"),
    ),
)
DAVIT = Rename(
    "timm-davit-names",
    "layers are named as DaViT's authors did (patch_embeds, main_blocks), in the class as timm does",
    (
        (r"^patch_embeds\.0\.", "stem."),
        (r"^patch_embeds\.(\d+)\.", r"stages.\1.downsample."),
        (r"^main_blocks\.(\d+)\.", r"stages.\1.blocks."),
        (r"^((?:stem|stages\.\d+\.downsample)\.)proj\.", r"\1conv."),
        (r"\.cpe\.1\.", ".cpe2."),
        (r"\.cpe\.0\.", ".cpe1."),
        (rf"^head{_END}", r"head.fc.\1"),
        (rf"^norms{_END}", r"head.norm.\1"),
    ),
)
DINOV2 = Rename(
    "timm-dinov2-names",
    "layers are named as DINOv2's authors did (register_tokens, w12), in the class as timm does",
    ((r"^register_tokens$", "reg_token"), (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")),
)

ALL: tuple[Rename, ...] = (
    DENSENET,
    NEW_WEIGHT_NORM,
    OLD_WEIGHT_NORM,
    GAMMA,
    Rename("layer-scale-names", "scales of layers are named gamma_1, in the class ls1.gamma",
           ((r"(^|\.)gamma_(\d)$", r"\1ls\2.gamma"),)),
    Rename("layer-scale-names", "scales of layers are named ls1.gamma, in the class gamma_1",
           ((r"(^|\.)ls(\d)\.gamma$", r"\1gamma_\2"),)),
    # timm moved the last layer of several models into a module with pooling, and names the last norm by where it is
    Rename("timm-head-names", "the head is named as older timm did", ((rf"^head{_END}", r"head.fc.\1"),)),
    Rename("timm-head-names", "the head is named as newer timm does", ((rf"^head\.fc{_END}", r"head.\1"),)),
    Rename("timm-head-names", "the last norm is named as older timm did", ((rf"^norm{_END}", r"head.norm.\1"),)),
    Rename("timm-head-names", "the last norm is named as newer timm does", ((rf"^head\.norm{_END}", r"norm.\1"),)),
    Rename("timm-norm-names", "the last norm is that of a class that takes the class token, in the class it is that of "
           "the mean (global_pool)", ((rf"^norm{_END}", r"fc_norm.\1"),)),
    Rename("timm-norm-names", "the last norm is that of a class that takes the mean (global_pool), in the class it is "
           "that of the class token", ((rf"^fc_norm{_END}", r"norm.\1"),)),
    SWIN,
    NEW_SWIN,
    CONVNEXT,
    DAVIT,
    DINOV2,
)  # fmt: skip
"""Each is tried on its own by ``ckpt verify``, which keeps what makes more tensors fit; of equals, the first."""


def weight_norm_pairs(names: Iterable[str]) -> list[str]:
    """Those of *names* that are the first of an old ``weight_norm``'s pair (``weight_g`` and ``weight_v``)."""
    known = set(names)
    return [name for name in names if name.endswith("_g") and f"{name[:-1]}v" in known]
