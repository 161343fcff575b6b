"""Checkpoints of older timm, and of the authors' own code, against today's timm: what verify mends is what timm does.

Old files are made here by naming a model's tensors as they were named then. timm's own filters, which it applies to
the weights it downloads and to no others, are the judges of the new names.
"""

import importlib
import re
from dataclasses import dataclass, field

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.verification.job import Job
from ckpt_tools.verification.results import Verification

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
checks = pytest.importorskip("ckpt_tools.runtime.verify").checks


@dataclass
class Old:
    """A small model of timm, how its names were once (applied in turn), and what verify should call that."""

    model: str
    code: str
    once: list
    kwargs: dict = field(default_factory=dict)
    size: int = 32
    more: dict = field(default_factory=dict)
    also: list = field(default_factory=list)
    judge: str = ""


STAGES = {"depths": [1, 1, 1, 1], "num_classes": 3}
SWIN = {**STAGES, "embed_dim": 12, "num_heads": [1, 1, 2, 2], "img_size": 64}
VIT = {"depth": 1, "embed_dim": 12, "num_heads": 1, "num_classes": 3, "img_size": 32}
# stages downsampled at their end
ENDS = [(rf"^layers\.{n}\.downsample", f"layers.{n - 1}.downsample") for n in (1, 2, 3)]
CONVNEXT = [
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"^head\.fc\.", "head."),
    (r"^head\.norm\.", "norm."),
]

OLD = [
    Old(
        "swin_tiny_patch4_window7_224",
        "timm-swin-names",
        [*ENDS, (r"^head\.fc\.", "head.")],
        {**SWIN, "window_size": 2},
        64,
        {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.int64)},
        ["constant-buffers"],
        "swin_transformer",
    ),
    Old(
        "swinv2_tiny_window8_256",
        "timm-swin-names",
        [*ENDS, (r"^head\.fc\.", "head.")],
        {**SWIN, "window_size": 2},
        64,
        {"layers.0.blocks.0.attn.relative_coords_table": torch.zeros(1, 3, 3, 2)},
        ["constant-buffers"],
        "swin_transformer_v2",
    ),
    Old("convnext_atto", "timm-convnext-names", CONVNEXT, {**STAGES, "dims": [4, 8, 8, 16]}, judge="convnext"),
    Old("edgenext_xx_small", "timm-convnext-names", CONVNEXT, {"num_classes": 3}, 64, judge="edgenext"),
    Old(
        "davit_tiny",
        "timm-davit-names",
        [
            (r"^stem\.conv", "patch_embeds.0.proj"),
            (r"^stem\.", "patch_embeds.0."),
            (r"^stages\.(\d+)\.downsample\.conv", r"patch_embeds.\1.proj"),
            (r"^stages\.(\d+)\.downsample", r"patch_embeds.\1"),
            (r"^stages\.(\d+)\.blocks", r"main_blocks.\1"),
            (r"cpe1\.", "cpe.0."),
            (r"cpe2\.", "cpe.1."),
            (r"^head\.fc\.", "head."),
            (r"^head\.norm\.", "norms."),
        ],
        {**STAGES, "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "window_size": 2},
        64,
        judge="davit",
    ),
    Old(
        "vit_giant_patch14_dinov2",
        "timm-dinov2-names",
        [(r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3")],
        {**VIT, "img_size": 28},
        28,
    ),
    Old("deit3_small_patch16_224", "layer-scale-names", [(r"ls(\d)\.gamma", r"gamma_\1")], VIT),
    Old("cait_xxs24_224", "layer-scale-names", [(r"gamma_(\d)", r"ls\1.gamma")], {**VIT, "num_heads": 2}),
    Old("vit_tiny_patch16_224", "timm-norm-names", [(r"^fc_norm", "norm")], {**VIT, "global_pool": "avg"}),
    Old("vit_tiny_patch16_224", "timm-norm-names", [(r"^norm", "fc_norm")], VIT),
    Old("convnext_atto", "timm-head-names", [(r"^head\.norm", "norm")], {**STAGES, "dims": [4, 8, 8, 16]}),
    Old("convnext_atto", "timm-head-names", [(r"^head\.fc", "head")], {**STAGES, "dims": [4, 8, 8, 16]}),
    Old("vit_tiny_patch16_224", "timm-head-names", [(r"^head", "head.fc")], VIT),
]


def old_names(names, once):
    found = {}
    for name in names:
        old = name
        for pattern, replacement in once:
            old = re.sub(pattern, replacement, old)
        found[name] = old
    return found


@pytest.mark.parametrize("old", OLD, ids=[f"{o.model} {o.code}" for o in OLD])
def test_old_names_of_timm(tmp_path, old):
    torch.manual_seed(0)
    model = timm.create_model(old.model, **old.kwargs)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is as it was made
            parameter.add_(torch.randn_like(parameter) / 4)
    own = model.state_dict()
    names = old_names(own, old.once)
    assert len(set(names.values())) == len(own)
    path, fixed = tmp_path / "old.pt", tmp_path / "fixed.safetensors"
    torch.save({**{names[name]: tensor for name, tensor in own.items()}, **old.more}, path)
    if old.judge:
        filtered = importlib.import_module(f"timm.models.{old.judge}").checkpoint_filter_fn(torch.load(path), model)
        assert filtered.keys() == own.keys()
    job = Job(
        str(path), f"timm:{old.model}", kwargs=old.kwargs, inputs=[f"3,{old.size},{old.size}"], write_fixed=str(fixed)
    )
    found = Verification(job.path, job.model, list(checks(job)))
    assert [p.code for p in found.problems if p.severity == "error"] == [old.code, *old.also], found
    assert f"mended {len(own)} of {len(own)} tensors, 100 % of parameter elements" in found["keys"].message
    assert found["runs"].facts["outputs"] == [{"path": "", "shape": [1, 3], "dtype": "float32"}]
    (state_dict,) = open_checkpoint(fixed).state_dicts
    assert state_dict.entries.keys() == own.keys()
    again = list(checks(Job(str(fixed), f"timm:{old.model}", kwargs=old.kwargs)))
    assert not [p for check in again for p in check.problems if p.severity == "error"]


def test_todays_names_for_an_older_class(tmp_path):
    """The other way round: a file of today, for a class that downsamples at its stages' ends."""
    from ckpt_tools.runtime.verify.names import renaming

    model = timm.create_model("swin_tiny_patch4_window7_224", **SWIN, window_size=2)
    path = tmp_path / "new.pt"
    torch.save(model.state_dict(), path)
    (state_dict,) = open_checkpoint(path).state_dicts
    names = old_names(model.state_dict(), OLD[0].once)
    way = renaming(state_dict.tensors, {names[name]: tuple(t.shape) for name, t in model.state_dict().items()})
    assert [step.code for step in way.steps] == ["timm-swin-names"]
    assert way.names == {new: old for new, old in names.items() if new != old}
