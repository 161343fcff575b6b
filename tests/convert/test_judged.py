"""What people save: each converts without its class, and loads strictly, bit for bit, into a fresh model."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.analysis.digest import digest
from ckpt_tools.convert.plan import Names
from ckpt_tools.convert.run import Conversion, carry_out, prepare
from ckpt_tools.formats import open_checkpoint
from tests.formats.as_torch import dense_bytes

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

AUTO = Names(strip="auto")


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return carry_out(*prepare(str(source), str(target), **options))


def randomized(model: Any, seed: int = 5) -> Any:
    """*model*, in evaluation, with every parameter and buffer of its own values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if not isinstance(tensor, torch.Tensor):
                continue
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.copy_(torch.randint(0, 2, tensor.shape, generator=generator))
    return model.eval()


def bits(model: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (str(tensor.dtype), tuple(tensor.shape), dense_bytes(tensor))
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def check(source: Path, make: Callable[[], Any], expected: Any, *, untied: bool = False, **options: Any) -> Conversion:
    """*source*, converted both ways, gives models that *make* makes the state of *expected*, by strict loading.

    *untied*: tied weights stand in the source as two, which the library's ``load_model`` refuses for a tied model.
    """
    folder = source.parent
    for suffix in (".pt", ".safetensors"):
        target = folder / f"converted{suffix}"
        done = convert(source, target, force=True, **options)
        if suffix == ".pt":
            state = torch.load(target, weights_only=True)
        else:
            state = safetensors_torch.load_file(target)
            state |= {name: state[alias.of] for name, alias in done.plan.aliases.items() if not alias.stored}
        model = make()
        assert bits(model) != bits(expected)
        model.load_state_dict(state, strict=True)
        assert bits(model) == bits(expected)
    if not untied:
        model = make()
        assert safetensors_torch.load_model(model, target, strict=True) == (set(), [])
        assert bits(model) == bits(expected)
    return done


class Net(torch.nn.Module):
    """Tied weights, buffers of two kinds, normalisation, and an attribute that Lightning users call ``model``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.body = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU())
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(6).bool())
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.embed(x)))


# --- timm

TIMM = (
    *("test_vit", "test_efficientnet", "test_byobnet", "test_convnext", "test_nfnet", "edgenext_xx_small"),
    *("ghostnet_050", "lcnet_035", "levit_128s", "maxvit_pico_rw_256", "regnetx_002", "xcit_nano_12_p16_224"),
)


@pytest.mark.parametrize("name", TIMM)
def test_timm_models(tmp_path: Path, name: str) -> None:
    timm = pytest.importorskip("timm")
    model = randomized(timm.create_model(name))
    torch.save(model, tmp_path / "model.pt")
    check(tmp_path / "model.pt", lambda: timm.create_model(name), model)


# --- Lightning

LIGHTNING = """
import sys, warnings
warnings.simplefilter("ignore")
import logging
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
import pytorch_lightning as lightning, torch
from torch.utils.data import DataLoader, TensorDataset

class Lit(lightning.LightningModule):
    def __init__(self, width=6, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.model = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width))
    def training_step(self, batch, index):
        return self.model(batch[0]).sum()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

model = Lit(width=6)
trainer = lightning.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, default_root_dir=sys.argv[1],
)
trainer.fit(model, DataLoader(TensorDataset(torch.randn(8, 3)), batch_size=4))
trainer.save_checkpoint(sys.argv[1] + "/model.ckpt")
torch.save(model.model.state_dict(), sys.argv[1] + "/expected.pt")
"""


def test_a_checkpoint_of_a_real_lightning_run(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    done = subprocess.run([sys.executable, "-c", LIGHTNING, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6))
    expected.load_state_dict(torch.load(tmp_path / "expected.pt", weights_only=True))
    found = check(
        tmp_path / "model.ckpt",
        lambda: torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6)),
        expected,
        names=AUTO,
    )
    assert found.plan.values["hyper_parameters"] == {"width": 6, "lr": 0.1}
    assert (found.plan.values["epoch"], found.plan.values["global_step"]) == (2, 4)
    assert ("optimizer_states", "list of 1 item") in found.plan.left


def test_a_checkpoint_as_lightning_makes_it(tmp_path: Path) -> None:
    model = randomized(Net())
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"epoch": 3, "global_step": 120, "pytorch-lightning_version": "2.4.0", "state_dict": state, "loops": {}},
        tmp_path / "model.ckpt",
    )
    found = check(tmp_path / "model.ckpt", Net, model, names=AUTO)
    assert found.plan.values["global_step"] == 120


# --- wrappers


@pytest.mark.parametrize("whole", [False, True], ids=["state_dict", "model"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.nn.DataParallel(model),
        lambda model: torch.compile(model),
        lambda model: torch.nn.DataParallel(torch.compile(model)),
        lambda model: torch.optim.swa_utils.AveragedModel(model),
    ],
    ids=["DataParallel", "compile", "both", "averaged"],
)
def test_wrapped_models(tmp_path: Path, wrap: Any, whole: bool) -> None:
    model = randomized(Net())
    wrapped = wrap(model)
    torch.save(wrapped if whole else wrapped.state_dict(), tmp_path / "wrapped.pt")
    # AveragedModel counts its updates beside the model
    drop = ["n_averaged"] if "n_averaged" in wrapped.state_dict() else []
    check(tmp_path / "wrapped.pt", Net, model, names=Names(strip="auto", drop=drop))
    as_it_is = convert(tmp_path / "wrapped.pt", tmp_path / "as_it_is.pt")
    assert set(as_it_is.plan.names) == set(wrapped.state_dict())


# --- what stands for weights


def normed(how: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6))
        utils = torch.nn.utils
        for layer in (model[0], model[2]):
            match how:
                case "weight_norm":
                    utils.weight_norm(layer)
                case "spectral_norm":
                    utils.spectral_norm(layer)
                case "new_weight_norm":
                    utils.parametrizations.weight_norm(layer)
                case "new_spectral_norm":
                    utils.parametrizations.spectral_norm(layer)
                case "orthogonal":
                    utils.parametrizations.orthogonal(layer, use_trivialization=False)
    return model


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "new_weight_norm", "new_spectral_norm", "orthogonal"])
def test_norms_and_parametrizations_as_they_are(tmp_path: Path, how: str) -> None:
    torch.manual_seed(2)
    model = normed(how)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    check(tmp_path / "model.pt", lambda: randomized(normed(how)), model)
    if how in ("weight_norm", "spectral_norm"):  # torch pickles no parametrized module
        torch.save(model, tmp_path / "whole.pt")
        check(tmp_path / "whole.pt", lambda: randomized(normed(how)), model)


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "new_weight_norm", "new_spectral_norm"])
def test_baked_models_compute_what_they_did(tmp_path: Path, how: str) -> None:
    torch.manual_seed(2)
    model = normed(how).eval()
    for _ in range(3):  # power iterations
        model.train()(torch.randn(2, 4))
    model.eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out.pt", baking=True)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6)).eval()
    plain.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    x = torch.randn(5, 4)
    assert torch.allclose(plain(x), model(x), rtol=1e-5, atol=1e-6)


def pruned() -> Any:
    prune = pytest.importorskip("torch.nn.utils.prune")
    model = Net()
    prune.l1_unstructured(model.body[0], "weight", amount=0.5)
    return model


def test_a_pruned_model_as_it_is_and_baked(tmp_path: Path) -> None:
    prune = pytest.importorskip("torch.nn.utils.prune")
    torch.manual_seed(3)
    model = pruned()
    torch.save(model, tmp_path / "model.pt")
    check(tmp_path / "model.pt", pruned, model)
    prune.remove(model.body[0], "weight")
    check(tmp_path / "model.pt", Net, model, baking=True)


# --- extra state


class WithExtra(torch.nn.Module):
    """Its ``extra`` goes with its tensors."""

    def __init__(self, extra: object) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.extra = extra

    def get_extra_state(self) -> object:
        return self.extra

    def set_extra_state(self, state: object) -> None:
        self.extra = state


EXTRAS = [{"steps": 3, "name": "é", "scales": [0.5, None, True]}, [], 7, None, "text"]
MORE = [{1: (2, 3), "raw": b"\x00\xff"}, (), b"\x80", -(1 << 80)]


@pytest.mark.parametrize("extra", [*EXTRAS, *MORE], ids=repr)
def test_extra_state_goes_along(tmp_path: Path, extra: object) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), WithExtra(extra))
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out.pt", names=AUTO)
    fresh = torch.nn.Sequential(torch.nn.Linear(2, 2), WithExtra("none yet"))
    fresh.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    assert fresh[1].extra == extra
    assert type(fresh[1].extra) is type(extra)
    assert bits(fresh) == bits(model)


@pytest.mark.parametrize("extra", EXTRAS, ids=repr)
def test_extra_state_that_is_json_comes_back_from_safetensors(tmp_path: Path, extra: object) -> None:
    torch.save(WithExtra(extra).state_dict(), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "between.safetensors")
    convert(tmp_path / "between.safetensors", tmp_path / "back.pt")
    fresh = WithExtra("none yet")
    fresh.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True), strict=True)
    assert fresh.extra == extra


def test_extra_state_that_has_no_place_is_told(run: Any, tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"raw": WithExtra(b"\x00"), "tensors": WithExtra({"t": torch.ones(1)})})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    done = run("convert", tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert done.stderr.splitlines() == [
        "ckpt: left behind: tensors._extra_state: mapping of 1 entry",
        "ckpt: left behind: raw._extra_state: extra state, for which the format has no place",
    ]
    done = run("convert", tmp_path / "model.pt", tmp_path / "out.pt")
    assert done.stderr.splitlines() == ["ckpt: left behind: tensors._extra_state: mapping of 1 entry"]


def test_a_tensor_as_extra_state_is_a_tensor(tmp_path: Path) -> None:
    torch.save(WithExtra(torch.arange(3)).state_dict(), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "out.pt")
    fresh = WithExtra(None)
    fresh.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    assert fresh.extra.tolist() == [0, 1, 2]


# --- training


def test_a_training_checkpoint_with_adam(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(2):
        model(torch.randint(0, 11, (4,))).sum().backward()
        optimizer.step()
        scheduler.step()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "epoch": 2,
            "rng": torch.get_rng_state(),
        },
        tmp_path / "step.pt",
    )
    found = check(tmp_path / "step.pt", Net, model)
    assert found.plan.values["epoch"] == 2
    assert {what for what, _ in found.plan.left} == {"optimizer", "rng"}


def test_a_folder_of_torch_distributed_checkpoint(tmp_path: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    torch.manual_seed(4)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randint(0, 11, (4,))).sum().backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of collectives that one process does without
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
        dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    found = check(tmp_path / "dcp", Net, model, select="model", untied=True)
    assert found.plan.values["epoch"] == 1


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_folder_as_deepspeed_zero_writes_it(tmp_path: Path, stage: int) -> None:
    from tests.formats.test_deepspeed import zero_2, zero_3

    folder = tmp_path / "global_step10"
    expected = zero_3(folder) if stage == 3 else zero_2(folder, stage=stage)
    for suffix in (".pt", ".safetensors"):
        done = convert(folder, tmp_path / f"out{suffix}")
        if suffix == ".pt":
            found = torch.load(tmp_path / "out.pt", weights_only=True)
        else:
            found = safetensors_torch.load_file(tmp_path / "out.safetensors")
            found |= {name: found[alias.of] for name, alias in done.plan.aliases.items() if not alias.stored}
        assert {name: dense_bytes(t) for name, t in found.items()} == {n: dense_bytes(t) for n, t in expected.items()}


# --- real files

CORPUS = {
    "burn_complex_nested.pt": "",
    "burn_non_contiguous_indexes.pt": "",
    "candle_fortran_tensor_3d.pth": "",
    "candle_test_with_key.pt": "",
    "facenet_pnet.pt": "",
    "facenet_rnet.pt": "",
    "lpips_alex.pth": "",
    "lpips_vgg.pth": "",
    "sb3_a2c_cartpole.zip": "policy.pth",
}
"""The files, and which of their state_dicts is converted: the one plain one, or the archive's member of this name."""


def by_the_rule(state: dict[str, Any]) -> str:
    """The digest of docs/digest.md, computed with torch."""
    import hashlib

    lines = {}
    for name, tensor in state.items():
        sizes = ",".join(map(str, tensor.shape))
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines[name.encode()] = (
            f"{json.dumps(name)} {dtype} [{sizes}] {hashlib.sha256(dense_bytes(tensor)).hexdigest()}\n"
        )
    return hashlib.sha256("".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


def as_torch_loads(path: Path, select: str) -> dict[str, Any]:
    if path.suffix == ".zip":
        import io
        import zipfile

        with zipfile.ZipFile(path) as archive:
            loaded = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    else:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    if set(loaded) == {"my_state_dict"} or set(loaded) == {"model_state_dict"}:
        (loaded,) = loaded.values()
    return dict(loaded)


def test_the_corpus_is_all_there(corpus: Path) -> None:
    assert {path.name for path in corpus.iterdir()} - {"README.md"} == set(CORPUS)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_converts(corpus: Path, tmp_path: Path, name: str, suffix: str) -> None:
    select = CORPUS[name]
    expected = as_torch_loads(corpus / name, select)
    done = convert(corpus / name, tmp_path / f"out{suffix}", select=select or None)
    assert done.source is not None
    assert done.source.sha256 == by_the_rule(expected)
    (found,) = open_checkpoint(tmp_path / f"out{suffix}").state_dicts
    assert digest(found.tensors).sha256 == by_the_rule(expected)
    if suffix == ".pt":
        loaded = torch.load(tmp_path / "out.pt", weights_only=True)
        assert by_the_rule(loaded) == by_the_rule(expected)
