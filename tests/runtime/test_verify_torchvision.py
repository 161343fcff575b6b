"""Every classification, segmentation, detection and video model of torchvision verifies against its own state_dict."""

import gc
from pathlib import Path

import pytest

from ckpt_tools.verification.job import Job
from ckpt_tools.verification.results import Verification

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models")
checks = pytest.importorskip("ckpt_tools.runtime.verify").checks

ROOT = Path(__file__).resolve().parents[2]

FAMILIES = [models, models.segmentation, models.detection, models.video]
NAMES = [name for family in FAMILIES for name in models.list_models(module=family)]

SIZES = {
    "inception_v3": "3,299,299",
    "s3d": "3,16,224,224",
    "mvit_v1_b": "3,16,224,224",
    "mvit_v2_s": "3,16,224,224",
    "swin3d_t": "3,8,112,112",
    "swin3d_s": "3,8,112,112",
    "swin3d_b": "3,8,112,112",
    "r3d_18": "3,8,112,112",
    "mc3_18": "3,8,112,112",
    "r2plus1d_18": "3,8,112,112",
}

# what a random network finds depends on the last bit, so that boxes change places where a batch rounds otherwise
UNSTABLE = set(models.list_models(module=models.detection))


def verified(name, folder):
    path = folder / f"{name}.pt"
    torch.manual_seed(0)
    options = {"weights": None}
    if name in models.list_models(module=models.detection) + models.list_models(module=models.segmentation):
        options["weights_backbone"] = None
    torch.save(models.get_model(name, **options).state_dict(), path)
    gc.collect()
    try:
        job = Job(str(path), f"torchvision:{name}", inputs=[SIZES.get(name, "3,224,224")])
        return Verification(str(path), job.model, list(checks(job)))
    finally:
        path.unlink()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")  # of GoogLeNet and Inception
@pytest.mark.parametrize("name", NAMES)
def test_model_verifies_against_its_own_state_dict(name, tmp_path):
    found = verified(name, tmp_path)
    allowed = {"head-untrained"} | ({"batch-dependent"} if name in UNSTABLE else set())
    assert {problem.code for problem in found.at_least("warning")} <= allowed
    assert found["keys"].facts["share"] == 1
    assert found["round-trip"].facts["same"] == found["keys"].facts["of"]
    assert [check.verdict for check in found.checks if check.name == "runs"] != ["skipped"]


@pytest.mark.full
def test_worked_example_in_full_size(tmp_path, monkeypatch):
    """VGG19 frozen, and a trained layer of one output: as state_dict, as full model, as training checkpoint."""
    monkeypatch.chdir(ROOT)
    nets = pytest.importorskip("fixtures.nets")
    torch.manual_seed(0)
    model = nets.full_size()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model.dense(torch.randn(4, 1000)) - 3).square().mean().backward()
        optimizer.step()
    training = {"epoch": 2, "model_satate_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    forms = {"state_dict": model.state_dict(), "model": model, "checkpoint": {**training, "loss": 0.5}}
    for form, saved in forms.items():
        path = tmp_path / f"{form}.pt"
        torch.save(saved, path)
        job = Job(
            str(path),
            "fixtures/nets.py:full_size",
            inputs=["3,224,224"],
            frozen=["backbone.*"],
            trainable=["dense.*"],
            trust=True,
        )
        found = Verification(str(path), job.model, list(checks(job)))
        assert found.at_least("warning") == []
        assert found["keys"].message == "loaded 40 of 40 tensors, 100 % of parameter elements"
        assert found["transfer"].message == "head `dense` with 1 output; 38 of 40 parameter tensors frozen"
        assert found["runs"].facts["outputs"] == [{"path": "", "shape": [1, 1], "dtype": "float32"}]
        assert found["resume"].verdict == ("passed" if form == "checkpoint" else "skipped")
        path.unlink()
