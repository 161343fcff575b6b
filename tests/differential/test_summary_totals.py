"""On every torchvision model the totals of ``ckpt summary`` are torch's own."""

import inspect

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.summary import summarize

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision").models


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.full
@pytest.mark.parametrize("name", models.list_models())
def test_totals(tmp_path, name):
    builder = models.get_model_builder(name)
    # weights are irrelevant here: nothing is downloaded, nothing initialised, nothing allocated
    accepted = inspect.signature(builder).parameters
    # regnet computes its widths with tensors, which must be real
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = builder(**{key: None for key in ("weights", "weights_backbone") if key in accepted})
    torch.save(model, tmp_path / "m.pt")
    totals = summarize(open_checkpoint(tmp_path / "m.pt")).data["totals"]
    assert totals["parameters"] == sum(p.numel() for p in model.parameters())
    assert totals["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert totals["buffers"] == sum(b.numel() for b in model.buffers())
