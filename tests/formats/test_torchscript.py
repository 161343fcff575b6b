"""TorchScript archives are described as torch.jit.load reads them."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_tools.checkpoint import Checkpoint, StateDict
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint, torchscript
from tests.formats.as_torch import assert_only_ckpt_errors, assert_same_tensors, dense_bytes
from tests.formats.hostile import assert_withstands_damage

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = [
    # torch 2.14 announces that torch.export will take TorchScript's place
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("kept", torch.arange(2.0).to(torch.bfloat16))
        self.plain = torch.arange(3.0)
        self.times = 5

    def forward(self, x):
        return self.fc(x) + self.passing.sum() + self.kept.sum() * self.times + self.plain


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.norm = nn.BatchNorm1d(3)
        self.layers = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Conv1d(2, 2, (3,), padding=1))
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_parameter("absent", None)
        self.tied = self.layers[0]
        self.sizes = [1, 2]
        self.table = {"a": torch.ones(1)}

    def forward(self, x):
        return self.layers(self.norm(self.inner(x))) * self.scale


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives of `Outer`, scripted and traced."""
    folder = tmp_path_factory.mktemp("torchscript")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Outer())
        scripted.save(folder / "scripted.pt", _extra_files={"labels.txt": "a b"})
        torch.jit.trace(Outer().eval(), torch.ones(2, 4)).save(folder / "traced.pt")
        torch.jit.freeze(torch.jit.script(Inner().eval())).save(folder / "frozen.pt")
        scripted._save_for_lite_interpreter(str(folder / "mobile.ptl"))
    return {path.stem: path for path in folder.iterdir()}


def state_dict(checkpoint: Checkpoint) -> StateDict:
    assert checkpoint.module is not None
    return checkpoint.module.state_dict()


def assert_like_torch(path: Path) -> Checkpoint:
    """The state_dict is that of torch.jit.load, in order, shape, bytes and metadata."""
    checkpoint = open_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(path)
    wanted = module.state_dict()
    found = state_dict(checkpoint)
    assert_same_tensors({tensor.name: replace(tensor, requires_grad=None) for tensor in found.tensors}, wanted)
    assert found.metadata == dict(wanted._metadata)
    flags = {t.name: t.requires_grad for t in found.tensors if t.is_parameter}
    shared = {n: p.requires_grad for n, p in module.named_parameters(remove_duplicate=False)}
    assert flags == shared
    assert [p.training for _, p in checkpoint.module.walk()] == [
        p.training for _, p in module.named_modules(remove_duplicate=False)
    ]
    return checkpoint


@pytest.mark.parametrize("name", ["scripted", "traced", "mobile"])
def test_state_dict_is_torchs(name: str, saved: dict[str, Path]) -> None:
    checkpoint = assert_like_torch(saved[name])
    assert checkpoint.format == "torchscript"
    assert checkpoint.kind == "program"


def test_torchvision_models(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    for name in ("resnet18", "googlenet"):
        keywords = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(models.get_model(name, **keywords)).save(tmp_path / f"{name}.pt")
        assert_like_torch(tmp_path / f"{name}.pt")


def test_modules_have_class_names_without_mangling(saved: dict[str, Path]) -> None:
    for name in ("scripted", "traced"):
        module = open_checkpoint(saved[name]).module
        assert module is not None
        classes = {path: part.class_name.removeprefix("__torch__.") for path, part in module.walk()}
        assert classes[""].endswith("Outer")
        assert classes["inner.fc"] == classes["tied"] == "torch.nn.modules.linear.Linear"
        assert classes["norm"] == "torch.nn.modules.batchnorm.BatchNorm1d"


def test_tied_modules_share_their_storage(saved: dict[str, Path]) -> None:
    found = state_dict(open_checkpoint(saved["scripted"]))
    assert found["tied.weight"].storage is found["layers.0.weight"].storage


def test_final_attributes_are_hyperparameters(saved: dict[str, Path]) -> None:
    module = open_checkpoint(saved["scripted"]).module
    assert module is not None
    parts = dict(module.walk())
    assert parts["norm"].hyperparameters["eps"] == 1e-5
    assert parts["layers.2"].hyperparameters["kernel_size"] == (3,)
    assert parts["inner"].hyperparameters["times"] == 5
    assert parts[""].attributes["sizes"] is not None


def test_tensors_that_are_plain_attributes_are_not_passed_over(saved: dict[str, Path]) -> None:
    loose = dict(open_checkpoint(saved["scripted"]).loose)
    assert {path: t.shape for path, t in loose.items()} == {("inner", "plain"): (3,), ("table", "a"): (1,)}


def test_constants_are_listed_apart(saved: dict[str, Path]) -> None:
    (constants,) = open_checkpoint(saved["traced"]).state_dicts
    assert (constants.path, constants.role) == (("constants",), "other")
    plain = [t for t in constants.tensors if t.shape == (3,)]
    assert [read_bytes(t) for t in plain] == [dense_bytes(torch.arange(3.0))]


def test_a_frozen_module_keeps_its_weights_among_the_constants(saved: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(saved["frozen"])
    assert state_dict(checkpoint).tensors == ()
    (constants,) = checkpoint.state_dicts
    assert (3, 4) in {t.shape for t in constants.tensors}


def test_metadata_names_code_and_extra_files(saved: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(saved["scripted"])
    # torch mangles the names of classes that the same process has scripted before
    linear = "__torch__.torch.nn.modules.linear"
    assert any(name == linear or name.startswith(f"{linear}.___torch_mangle") for name in checkpoint.metadata["code"])
    assert checkpoint.metadata["extra files"] == ("labels.txt",)
    assert checkpoint.producer["archive version"] == "3"
    assert "bytecode.pkl" in open_checkpoint(saved["mobile"]).producer["interpreter"]


def test_weights_only_refuses_it_as_torch_does(saved: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="TorchScript"), pytest.raises(RuntimeError, match="TorchScript"):
        torch.load(saved["scripted"], weights_only=True)
    refusals = open_checkpoint(saved["scripted"]).refusals
    assert refusals is not None
    assert [refusal.subject for refusal in refusals] == ["TorchScript"]


def test_globals_of_both_pickles_are_listed(saved: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(saved["traced"])
    assert [pickle.member for pickle in checkpoint.pickles] == ["traced/data.pkl", "traced/constants.pkl"]
    assert "torch._utils._rebuild_tensor_v2" in {str(use) for use in checkpoint.pickles[1].globals}


def test_code_is_never_run_and_only_read_where_data_names_it(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["scripted"], tmp_path, lambda name, data: b"\xff(" if "functional" in name else data)
    assert open_checkpoint(path).anomalies == ()


# --- the code decides, not the pickle


def rewritten(path: Path, folder: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive, each member given through *edit*; None leaves it out."""
    target = folder / f"rewritten_{len(list(folder.iterdir()))}.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = edit(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data, compress_type=info.compress_type)
    return target


def in_code(old: str, new: str) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        return re.sub(old.encode(), new.encode(), data) if name.endswith(".py") else data

    return edit


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"  __buffers__ = .*\n", ""),
        (r"  __parameters__ = .*\n", ""),
        (r'\["passing", "kept", \]', r'["kept"]'),
        (r'\["passing", "kept", \]', r"['passing', 'kept']"),
        (r"  passing : Tensor\n  kept : Tensor\n", "  kept : Tensor\n  passing : Tensor\n"),
    ],
)
def test_what_the_code_says_is_what_torch_takes(old: str, new: str, saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["scripted"], tmp_path, in_code(old, new))
    names = [t.name for t in state_dict(open_checkpoint(path)).tensors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert names == list(torch.jit.load(path).state_dict())
    if "Tensor" in new:
        assert names.index("inner.kept") < names.index("inner.passing")


def test_a_class_without_code_is_reported_and_its_tensors_still_listed(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["scripted"], tmp_path, lambda name, data: None if name.endswith("batchnorm.py") else data)
    checkpoint = open_checkpoint(path)
    assert [a.where for a in checkpoint.anomalies] == ["__torch__.torch.nn.modules.batchnorm.BatchNorm1d"]
    assert ("norm", "running_mean") in dict(checkpoint.loose)


def test_a_class_in_another_hand_is_reported_and_its_tensors_still_listed(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    path = rewritten(saved["scripted"], tmp_path, in_code(r'__buffers__ = \["passing",', '__buffers__ = ["passing",\n'))
    checkpoint = open_checkpoint(path)
    (anomaly,) = checkpoint.anomalies
    assert anomaly.what.endswith("""'__buffers__ = ["passing",'""")
    assert ("inner", "passing") in dict(checkpoint.loose)


def test_what_the_class_does_not_declare_is_reported_and_listed(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["scripted"], tmp_path, in_code(r"  (plain : Tensor|fc : __torch.*)\n", ""))
    checkpoint = open_checkpoint(path)
    assert [(a.what, a.where) for a in checkpoint.anomalies] == [
        ("holds what its code does not declare: plain, fc", "inner")
    ]
    assert {("inner", "plain"), ("inner", "fc", "weight"), ("inner", "fc", "bias")} <= dict(checkpoint.loose).keys()


def test_instances_that_set_their_own_state(tmp_path: Path) -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        @torch.jit.export
        def __getstate__(self):
            return (self.weight, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
            self.weight = state[0]
            self.training = state[1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Stateful()).save(tmp_path / "stateful.pt")
    checkpoint = open_checkpoint(tmp_path / "stateful.pt")
    assert state_dict(checkpoint).tensors == ()
    assert [(path, t.shape) for path, t in checkpoint.loose] == [(("__setstate__", 0), (2,))]
    assert [a.what for a in checkpoint.anomalies] == [
        "sets its own state by __setstate__, so that its parameters are unknown"
    ]


def test_packed_weights_of_quantized_layers_are_listed(tmp_path: Path) -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no quantized kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = "fbgemm"
        layers = nn.Sequential(torch.ao.nn.quantized.Quantize(0.5, 0, torch.quint8), torch.ao.nn.quantized.Linear(4, 3))
        torch.jit.script(layers.eval()).save(tmp_path / "quantized.pt")
    checkpoint = assert_like_torch(tmp_path / "quantized.pt")
    packed = {path: (t.dtype.name, t.shape) for path, t in checkpoint.loose}
    assert packed[("1", "_packed_params", "_packed_params", 0)] == ("qint8", (3, 4))


# --- what is none


def archive(folder: Path, members: Mapping[str, bytes]) -> Path:
    path = folder / "made.pt"
    with zipfile.ZipFile(path, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def test_archives_of_torch_1_0_to_1_3_are_named(tmp_path: Path) -> None:
    path = archive(tmp_path, {"m/version": b"1\n", "m/tensors/0": b"1234", "m/model.json": b"{}"})
    with pytest.raises(UnsupportedFeature, match=r"torch 1\.0 to 1\.3"):
        open_checkpoint(path)


def test_an_archive_without_its_pickle(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"m/data\.pkl: a TorchScript archive without it"):
        open_checkpoint(archive(tmp_path, {"m/constants.pkl": b"\x80\x02)."}))


def test_code_without_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\x80\x02c__torch__\nM\n)\x81}b."
    code = b"class M(Module):\n  __parameters__ = []\n"
    members = {"m/data.pkl": data, "m/constants.pkl": b"\x80\x02).", "m/code/__torch__.py": code}
    path = archive(tmp_path, members)
    assert open_checkpoint(path).module is not None
    monkeypatch.setattr(torchscript, "CODE_LIMIT", len(code) - 1)
    with pytest.raises(LimitExceeded, match="the code takes more than"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "s.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 1), torch.ones(2)).save(path)

    # as short as it can be: no padding, no debug information
    def edit(name: str, data: bytes) -> bytes | None:
        return data if name.endswith((".py", "data.pkl", "constants.pkl", "/0", "/1", "byteorder")) else None

    return rewritten(path, path.parent, edit).read_bytes()


def test_cut_off_anywhere(small: bytes) -> None:
    assert open_checkpoint(small).kind == "program"
    assert assert_only_ckpt_errors(small) == 0


def test_damaged_anywhere(small: bytes) -> None:
    assert assert_withstands_damage(small) > 0
