"""``--bake`` makes the weights that torch makes when it removes pruning, norms and parametrizations."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.contents import chunks
from ckpt_tools.convert import bake as baking
from ckpt_tools.convert.bake import Baked, bare_versions
from ckpt_tools.convert.plan import NOTE, Names
from ckpt_tools.convert.run import Conversion, carry_out, prepare
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import LimitExceeded, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from tests.formats.as_torch import dense_bytes

torch = pytest.importorskip("torch")
parametrizations = torch.nn.utils.parametrizations
parametrize = torch.nn.utils.parametrize
prune = pytest.importorskip("torch.nn.utils.prune")

ULPS = {torch.float32: 4, torch.float64: 16, torch.float16: 2, torch.bfloat16: 2}
"""How far torch's own result, several roundings in the tensor's type, may be from the formula rounded once."""


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(11)
    monkeypatch.setattr(baking, "ELEMENTS", 97)  # so that small tensors come in several runs, cut anywhere


@pytest.fixture(autouse=True)
def deprecated() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm is deprecated, and in every vocoder
        yield


def bake(model: Any, folder: Path, suffix: str = ".pt", **options: Any) -> tuple[dict[str, Any], Conversion]:
    """What the state_dict of *model* is converted to, and the conversion."""
    state = model if isinstance(model, dict) else model.state_dict()
    torch.save(state, folder / "source.pt")
    done = carry_out(*prepare(str(folder / "source.pt"), str(folder / f"out{suffix}"), baking=True, **options))
    if suffix == ".pt":
        return torch.load(folder / "out.pt", weights_only=True), done
    from safetensors.torch import load_file

    return load_file(folder / f"out{suffix}"), done


def ulps(found: Any, expected: Any) -> int:
    """The largest distance in units in the last place."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    width = {8: torch.int64, 4: torch.int32, 2: torch.int16}[found.element_size()]
    # the integers that the bits are, made to grow with the number
    a, b = (torch.where(t < 0, torch.iinfo(width).min - t, t) for t in (x.view(width) for x in (found, expected)))
    return int((a.double() - b.double()).abs().max())


def assert_close(found: dict[str, Any], expected: dict[str, Any], steps: int | None = None) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert ulps(found[name], tensor) <= (ULPS[tensor.dtype] if steps is None else steps), name


# --- pruning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pruning_is_torch_s_bit_for_bit(tmp_path: Path, dtype: Any, suffix: str) -> None:
    warnings.simplefilter("ignore", UserWarning)  # torch calls complex modules experimental
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(7, 5)).to(dtype)
    for layer, name in ((model[0], "weight"), (model[1], "weight"), (model[1], "bias")):
        prune.custom_from_mask(layer, name, (torch.rand(getattr(layer, name).shape) > 0.4).to(dtype))
    found, done = bake(model, tmp_path, suffix)
    for layer, name in ((0, "weight"), (1, "weight"), (1, "bias")):
        prune.remove(model[layer], name)
    expected = model.state_dict()
    assert sorted(found) == sorted(expected)
    assert {k: dense_bytes(v) for k, v in found.items()} == {k: dense_bytes(v) for k, v in expected.items()}
    assert [(b.name, b.method, b.parts) for b in done.plan.baked] == [
        ("0.weight", "pruning", ("0.weight_orig", "0.weight_mask")),
        ("1.weight", "pruning", ("1.weight_orig", "1.weight_mask")),
        ("1.bias", "pruning", ("1.bias_orig", "1.bias_mask")),
    ]


def test_masks_of_any_type_and_layout(tmp_path: Path) -> None:
    orig = torch.tensor([[1.0, -2.0, float("inf")], [float("nan"), -0.0, 3.0]])
    mask = torch.tensor([[True, False], [False, True], [True, True]]).T
    found, _ = bake({"w_orig": orig.T.contiguous().T, "w_mask": mask}, tmp_path)
    assert dense_bytes(found["w"]) == dense_bytes(mask.to(torch.float32) * orig)
    assert str(found["w"].tolist()) == "[[1.0, -0.0, inf], [nan, -0.0, 3.0]]"


def test_tied_pruned_weights_stay_tied(tmp_path: Path) -> None:
    embedding, out = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
    out.weight = embedding.weight
    mask = torch.ones(6, 4)
    model = torch.nn.ModuleDict({"embedding": embedding, "out": out})
    prune.custom_from_mask(embedding, "weight", mask)
    prune.custom_from_mask(out, "weight", mask)
    out.weight_orig, out.weight_mask = embedding.weight_orig, embedding.weight_mask
    found, done = bake(model, tmp_path)
    assert found["embedding.weight"].data_ptr() == found["out.weight"].data_ptr()
    assert done.plan.aliases["out.weight"].of == "embedding.weight"


# --- weight_norm


def layers() -> list[tuple[Any, int | None]]:
    return [
        (torch.nn.Linear(33, 17), 0),
        (torch.nn.Linear(33, 17), 1),
        (torch.nn.Linear(33, 17), None),
        (torch.nn.Conv2d(5, 7, 3), 0),
        (torch.nn.Conv2d(5, 7, 3), 1),
        (torch.nn.Conv2d(5, 7, 3), 2),
        (torch.nn.Conv2d(5, 7, 3), 3),
        (torch.nn.Conv2d(5, 7, 3), None),
        (torch.nn.ConvTranspose1d(6, 4, 5), 1),
        (torch.nn.Linear(1, 9), 1),
        (torch.nn.Linear(9, 1), 0),
        (torch.nn.Conv1d(512, 16, 9), 0),
    ]


@pytest.mark.parametrize("new", [False, True], ids=["hook", "parametrization"])
@pytest.mark.parametrize("number", range(len(layers())))
def test_weight_norm_along_any_axis(tmp_path: Path, number: int, new: bool) -> None:
    layer, dim = layers()[number]
    model = torch.nn.Sequential(layer)
    (parametrizations.weight_norm if new else torch.nn.utils.weight_norm)(layer, dim=dim)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    found, done = bake(model, tmp_path)
    if new:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    else:
        torch.nn.utils.remove_weight_norm(layer)
    assert_close(found, model.state_dict())
    assert [(b.name, b.method) for b in done.plan.baked] == [("0.weight", "weight_norm")]


@pytest.mark.parametrize("dtype", ULPS)
@pytest.mark.parametrize("new", [False, True], ids=["hook", "parametrization"])
def test_weight_norm_keeps_the_dtype(tmp_path: Path, dtype: Any, new: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 5))
    (parametrizations.weight_norm if new else torch.nn.utils.weight_norm)(model[0])
    model.to(dtype)
    found, _ = bake(model, tmp_path)
    if new:
        parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=True)
    else:
        torch.nn.utils.remove_weight_norm(model[0])
    assert_close(found, model.state_dict())


def test_the_result_is_the_formula_rounded_once(tmp_path: Path) -> None:
    layer = torch.nn.utils.weight_norm(torch.nn.Linear(4096, 3))
    found, _ = bake(layer, tmp_path)
    g, v = layer.weight_g.double(), layer.weight_v.double()
    exact = v * (g / v.square().sum(1, keepdim=True).sqrt())
    assert (found["weight"] == exact.float()).all()


def test_norms_of_zero_and_of_nothing(tmp_path: Path) -> None:
    state = {"w_g": torch.tensor([[1.0], [2.0]]), "w_v": torch.tensor([[0.0, 0.0], [3.0, 4.0]])}
    state |= {"e_g": torch.ones(2, 1), "e_v": torch.ones(2, 0)}
    found, _ = bake(state, tmp_path)
    assert str(found["w"].tolist()) == "[[nan, nan], [1.2000000476837158, 1.600000023841858]]"
    assert found["e"].shape == (2, 0)


def test_names_that_only_look_like_a_norm_stay(tmp_path: Path) -> None:
    state = {"a_g": torch.ones(3, 4), "a_v": torch.ones(3, 4), "b_g": torch.ones(2), "b_v": torch.ones(2, 5)}
    state |= {"c_mask": torch.ones(2), "d_orig": torch.ones(2)}
    found, done = bake(state, tmp_path)
    assert found.keys() == state.keys()
    assert done.plan.baked == ()


# --- spectral_norm


SPECTRAL = [
    (lambda: torch.nn.Linear(33, 17), 0),
    (lambda: torch.nn.Conv2d(5, 7, 3), 0),
    (lambda: torch.nn.ConvTranspose2d(5, 7, 3), 1),
    (lambda: torch.nn.Conv1d(8, 8, 8), 0),
    (lambda: torch.nn.ConvTranspose1d(8, 8, 8), 1),
    (lambda: torch.nn.Linear(16, 16), 1),
]


@pytest.mark.parametrize("new", [False, True], ids=["hook", "parametrization"])
@pytest.mark.parametrize("number", range(len(SPECTRAL)))
def test_spectral_norm_along_any_axis(tmp_path: Path, number: int, new: bool) -> None:
    make, dim = SPECTRAL[number]
    layer = make()
    model = torch.nn.Sequential(layer)
    (parametrizations.spectral_norm if new else torch.nn.utils.spectral_norm)(layer, dim=dim)
    for _ in range(20):
        model(inputs(layer))
    model.eval()
    found, done = bake(model, tmp_path)
    if new:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    else:
        torch.nn.utils.remove_spectral_norm(layer)
    assert_close(found, model.state_dict())
    ambiguous = list(layer.weight.shape).count(layer.weight.shape[dim]) > 1
    basis = "inferred from names, shapes and values" if ambiguous else "inferred from names and shapes"
    assert [(b.name, b.method, b.basis) for b in done.plan.baked] == [("0.weight", "spectral_norm", basis)]


def inputs(layer: Any) -> Any:
    if isinstance(layer, torch.nn.Linear):
        return torch.randn(2, layer.in_features)
    return torch.randn(1, layer.in_channels, *[9] * (layer.weight.ndim - 2))


def test_a_spectral_norm_that_may_be_along_two_axes_is_told(tmp_path: Path) -> None:
    layer = torch.nn.utils.spectral_norm(torch.nn.Linear(16, 16), dim=1)  # its u and v are random until it is used
    with pytest.raises(UnsupportedFeature, match=r"weight \(a spectral_norm that may be along the axes 0 and 1, which"):
        bake(layer, tmp_path)
    torch.save(layer, tmp_path / "model.pt")  # the hook, with its axis, is in the file
    done = carry_out(*prepare(str(tmp_path / "model.pt"), str(tmp_path / "out.pt"), baking=True))
    assert [b.basis for b in done.plan.baked] == ["recorded in the module"]
    matrix, u, v = (t.detach().double() for t in (layer.weight_orig, layer.weight_u, layer.weight_v))
    exact = (matrix / (u @ (matrix.T @ v))).float()
    assert ulps(torch.load(tmp_path / "out.pt", weights_only=True)["weight"], exact) <= 1


def test_a_symmetric_weight_has_one_spectral_norm(tmp_path: Path) -> None:
    state = {"w_orig": 2 * torch.eye(3), "w_u": torch.tensor([0.0, 1, 0]), "w_v": torch.tensor([0.6, 0.8, 0])}
    found, _ = bake(state, tmp_path)
    assert torch.equal(found["w"], torch.eye(3) / 0.8)


# --- one upon another, and what cannot be


def test_a_pruned_weight_norm(tmp_path: Path) -> None:
    layer = torch.nn.utils.weight_norm(torch.nn.Linear(33, 17))
    prune.random_unstructured(layer, "weight_v", amount=0.5)
    found, done = bake(layer, tmp_path)
    prune.remove(layer, "weight_v")
    torch.nn.utils.remove_weight_norm(layer)
    assert_close(found, layer.state_dict())
    assert [(b.name, b.method) for b in done.plan.baked] == [("weight_v", "pruning"), ("weight", "weight_norm")]


def test_parametrizations_that_the_file_does_not_define_are_named(tmp_path: Path) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return 2 * x

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    parametrizations.orthogonal(model[0], use_trivialization=True)
    parametrize.register_parametrization(model[1], "weight", Doubled())
    parametrizations.weight_norm(model[2])
    with pytest.raises(UnsupportedFeature) as refused:
        bake(model, tmp_path)
    assert str(refused.value) == (
        f"{tmp_path / 'source.pt'}: 2 weights cannot be baked: 0.weight (a parametrization that is neither weight_norm "
        "nor spectral_norm: it has original, 0.base), 1.weight (a parametrization of which the file has only the "
        "original: it does not say what it computes). Leave out what they are made of with --drop GLOB, or bake where "
        "the class is: torch.nn.utils.parametrize.remove_parametrizations"
    )
    found, _ = bake(model, tmp_path, names=Names(drop=["0.param*", "1.param*"]))
    assert sorted(found) == ["0.bias", "1.bias", "2.bias", "2.weight"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w_orig": torch.ones(2), "w_mask": torch.ones(3)}, r"w \(its mask has the shape \[3\], the weight \[2\]\)"),
        ({"w_orig": torch.ones(2).int(), "w_mask": torch.ones(2)}, "int32 is not multiplied"),
        ({"w_orig": torch.ones(2), "w_mask": torch.ones(2), "w": torch.ones(2)}, "of that name is there already"),
        ({"w_orig": torch.ones(2, 3), "w_u": torch.ones(2)}, "torch before 1.1, which saved no v"),
        (
            {"w_orig": torch.ones(2, 3), "w_u": torch.ones(4), "w_v": torch.ones(3)},
            r"shape \[2, 3\] with vectors of 4 and 3 elements",
        ),
        (
            {"w_orig": torch.ones(2, 3), "w_u": torch.ones(2).half(), "w_v": torch.ones(3)},
            "spectral_norm of float32 with vectors of float16 and float32",
        ),
        ({"w_g": torch.ones(2, 1).half(), "w_v": torch.ones(2, 3)}, "weight_norm of float32 with a norm of float16"),
        ({"w_orig": torch.ones(2), "w_mask": torch.ones(2).to_sparse()}, "the bytes of w_mask are not in the file"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedFeature, match=message):
        bake(state, tmp_path)


def test_parts_that_repeat_a_few_bytes_without_measure_are_refused(tmp_path: Path) -> None:
    many = torch.ones(1).expand(1 << 40)
    with pytest.raises(LimitExceeded, match="are repeated, by expanded tensors and views"):
        bake({"w_orig": many, "w_mask": many}, tmp_path)


# --- what is said of it


def test_the_note_and_the_versions_are_of_the_plain_model(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    parametrizations.weight_norm(model[0])
    torch.nn.utils.spectral_norm(model[1])
    prune.identity(model[2], "weight")
    bake(model, tmp_path, ".safetensors")
    note = json.loads(str(open_checkpoint(tmp_path / "out.safetensors").metadata[NOTE]))
    assert note["baked"] == {
        "0.weight": {
            "method": "weight_norm",
            "parts": ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
        },
        "1.weight": {"method": "spectral_norm", "parts": ["1.weight_orig", "1.weight_u", "1.weight_v"]},
        "2.weight": {"method": "pruning", "parts": ["2.weight_orig", "2.weight_mask"]},
    }
    assert note["source"]["complete"] is False  # the digest is of what was made
    assert note["versions"] == {name: {"version": 1} for name in ("", "0", "1", "2")}
    found, _ = bake(model, tmp_path)
    fresh = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    fresh.load_state_dict(found, strict=True)
    assert found._metadata == fresh.state_dict()._metadata


def test_versions_of_other_parametrizations_stay() -> None:
    names = ("", "a", "a.parametrizations", "a.parametrizations.weight", "a.parametrizations.weight.0")
    versions = {name: {"version": 1} for name in (*names, "a.parametrizations.bias", "a.parametrizations.bias.0")}
    story = Baked("a.weight", "weight_norm", ("a.parametrizations.weight.original0", "…"), "")
    left = ["", "a", "a.parametrizations", "a.parametrizations.bias", "a.parametrizations.bias.0"]
    assert list(bare_versions(versions, [story])) == left
    assert list(bare_versions({name: versions[name] for name in names}, [story])) == ["", "a"]


def test_the_command_says_what_was_baked(run: Any, tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    torch.save(layer.state_dict(), tmp_path / "plain.pt")
    prune.identity(layer, "weight")
    torch.save(layer.state_dict(), tmp_path / "pruned.pt")
    done = run("convert", tmp_path / "pruned.pt", tmp_path / "out.pt", "--bake", "--report", tmp_path / "report.json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("2 tensors, 1 of them baked, ")
    story = json.loads((tmp_path / "report.json").read_text())["files"][0]
    assert story["baked"] == [
        {
            "name": "weight",
            "method": "pruning",
            "parts": ["weight_orig", "weight_mask"],
            "basis": "named as torch.nn.utils.prune does",
        }
    ]
    shown = run("convert", tmp_path / "pruned.pt", tmp_path / "new.pt", "--bake", "--dry-run").stdout
    assert "weight  pruning  weight_orig, weight_mask  named as torch.nn.utils.prune does" in shown
    nothing = run("convert", tmp_path / "plain.pt", tmp_path / "new.pt", "--bake")
    assert nothing.exit_code == 0
    assert nothing.stderr == "ckpt: nothing to bake: no pruning, weight_norm, spectral_norm or parametrization\n"


def test_baked_weights_can_be_cast(tmp_path: Path) -> None:
    layer = torch.nn.utils.weight_norm(torch.nn.Linear(33, 17))
    found, _ = bake(layer, tmp_path, dtype=BY_NAME["bfloat16"])
    whole, _ = bake(layer, tmp_path, force=True)
    assert torch.equal(found["weight"], whole["weight"].bfloat16())


def test_bytes_are_made_a_run_at_a_time(tmp_path: Path) -> None:
    layer = torch.nn.utils.weight_norm(torch.nn.Conv2d(20, 30, 3))
    torch.save(layer.state_dict(), tmp_path / "source.pt")
    conversion, _ = prepare(str(tmp_path / "source.pt"), str(tmp_path / "out.pt"), baking=True)
    (weight,) = (e.tensor for e in conversion.plan.entries if e.name == "weight")
    pieces = list(chunks(weight))
    assert {len(piece) for piece in pieces[:-1]} == {4 * baking.ELEMENTS}
    assert sum(map(len, pieces)) == weight.nbytes
    whole = b"".join(pieces)
    assert weight.storage.read(1001, 5000) == whole[1001:6001]
