"""The rules about portability, where one firing and one clean file do not say it all."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_tools.audit.rules import portability
from ckpt_tools.audit.rules.portability import (
    NEEDED,
    benign_names,
    missing_attribute,
    old_names,
    oversize_storage,
    wrapper_prefixes,
)
from ckpt_tools.audit.subject import Subject
from tests.audit.cases_portability import named, saved, without

torch = pytest.importorskip("torch")

INPUTS = {
    "padding_mode": lambda nn: (nn.Conv2d(2, 2, 1), (torch.ones(1, 2, 3, 3),)),
    "divisor_override": lambda nn: (nn.AvgPool2d(2), (torch.ones(1, 2, 4, 4),)),
    "batch_first": lambda nn: (nn.MultiheadAttention(4, 2), (torch.ones(2, 1, 4),) * 3),
    "norm_first": lambda nn: (nn.TransformerEncoderLayer(4, 2, 8), (torch.ones(2, 1, 4),)),
    "label_smoothing": lambda nn: (nn.CrossEntropyLoss(), (torch.ones(1, 2), torch.tensor([1]))),
    "recompute_scale_factor": lambda nn: (nn.Upsample(scale_factor=2), (torch.ones(1, 2, 4, 4),)),
    "approximate": lambda nn: (nn.GELU(), (torch.ones(2),)),
}


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.attribute)
def test_todays_torch_needs_the_attribute_or_fills_it_in(needed) -> None:
    module, inputs = INPUTS[needed.attribute](torch.nn)
    assert f"{type(module).__module__}.{type(module).__qualname__}" in needed.classes
    del module.__dict__[needed.attribute]
    loaded = pickle.loads(pickle.dumps(module)).eval()
    if needed.filled is not None:
        loaded(*inputs)
    else:
        with pytest.raises(AttributeError, match=needed.attribute):
            loaded(*inputs)


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.attribute)
def test_every_class_of_the_table_exists(needed) -> None:
    for name in needed.classes:
        module, _, attribute = name.rpartition(".")
        assert isinstance(getattr(__import__(module, fromlist=["_"]), attribute), type)


@pytest.mark.parametrize(
    ("version", "fires"), [("1.0", False), ("1.1.0", True), ("1.2", False), (None, False), ("2.14.1", False)]
)
def test_only_the_versions_that_need_it_and_do_not_fill_it_in(tmp_path: Path, version: str | None, fires: bool) -> None:
    subject = saved(without(lambda nn: nn.Conv2d(1, 1, 1), "padding_mode"), version)(tmp_path)
    assert bool(list(missing_attribute.findings(subject))) is fires


@pytest.mark.parametrize(("version", "fires"), [((1, 1), True), ((2, 0), False), (None, False)])
def test_else_the_installed_version_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None, fires: bool
) -> None:
    monkeypatch.setattr(portability, "installed_torch", lambda: version)
    subject = saved(without(lambda nn: nn.Conv2d(1, 1, 1), "padding_mode"), None)(tmp_path)
    assert bool(list(missing_attribute.findings(subject))) is fires


def test_the_installed_version_is_known_without_an_import() -> None:
    ask = "import sys; from ckpt_tools.audit.policy import installed_torch as ask; print(ask(), 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert told == f"{tuple(map(int, torch.__version__.split('.')[:2]))} False\n"


def test_names_that_come_up_as_missing_and_are_harmless(tmp_path: Path) -> None:
    def told(*names: str) -> list[str]:
        return [finding.message for finding in benign_names.findings(named(*names)(tmp_path))]

    assert told("bn.running_mean") == [
        "1 layer with no num_batches_tracked: torch takes 0 for it, also under strict (bn.running_mean)"
    ]
    assert "position_ids" in told("embeddings.position_ids")[0]
    assert [f.message for f in old_names.findings(named("encoder.LayerNorm.gamma")(tmp_path))] == [
        "1 key in LayerNorm's form in BERT's first files (gamma for weight): encoder.LayerNorm.gamma"
    ]


@pytest.mark.parametrize("around", [lambda view: view, lambda view: [view], lambda view: {"w": view}])
def test_a_view_of_a_large_storage_is_found_wherever_it_stands(tmp_path: Path, around) -> None:
    big = torch.zeros(40_000, 2)
    torch.save(around(big[:10]), tmp_path / "view.pt")
    (found,) = oversize_storage.findings(Subject.open(str(tmp_path / "view.pt")))
    assert found.evidence == {"slack": 319_920, "used": 80}


def test_the_counter_of_an_averaged_model_has_no_prefix(tmp_path: Path) -> None:
    subject = named("n_averaged", "module.fc.weight", "module.fc.bias")(tmp_path)
    (found,) = wrapper_prefixes.findings(subject)
    assert found.message == "all 2 keys but n_averaged begin with module."
    assert not list(wrapper_prefixes.findings(named("other", "module.fc.weight")(tmp_path)))


@pytest.mark.parametrize(
    ("name", "fires"), [("model.pt", True), ("run.ckpt", True), ("pytorch_model.bin", False), ("m.safetensors", False)]
)
def test_the_body_of_a_language_model_is_no_wrapper(tmp_path: Path, name: str, fires: bool) -> None:
    keys = ("model.embed_tokens.weight", "model.layers.0.mlp.weight")
    path = tmp_path / name
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors.torch").save_file({key: torch.zeros(2) for key in keys}, path)
    else:
        torch.save({key: torch.zeros(2) for key in keys}, path)
    assert bool(list(wrapper_prefixes.findings(Subject.open(str(path))))) is fires
