"""Tensors that a format cannot hold go out as their parts, are told as what they were, and come back."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.analysis.digest import digest
from ckpt_tools.convert.plan import Names
from ckpt_tools.convert.run import Conversion, carry_out, prepare
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.base import NOTE

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture(autouse=True)
def experimental() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says of most of these kinds that they may change
        yield


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return carry_out(*prepare(str(source), str(target), **options))


def of(path: Path) -> str:
    (found,) = open_checkpoint(path).state_dicts
    return digest(found.tensors).sha256


def quantized() -> dict[str, Any]:
    torch.manual_seed(3)
    weight = torch.randn(4, 6)
    scales, zeros = torch.rand(4, dtype=torch.float64) + 0.1, torch.arange(4)
    floats = (torch.rand(4) + 0.1, torch.rand(4))
    tensor, channel = torch.quantize_per_tensor, torch.quantize_per_channel
    first = tensor(weight, 0.05, 3, torch.qint8)
    return {
        "first": first,
        "again": first,
        "part": first[1:3],
        "turned": first.T,
        "unsigned": tensor(weight, 0.1, 7, torch.quint8),
        "wide": tensor(weight, 1e-9, 0, torch.qint32),
        "scalar": tensor(torch.tensor(1.5), 0.1, 1, torch.qint8),
        "channels": channel(weight, scales, zeros, 0, torch.qint8),
        "other_axis": channel(weight, torch.rand(6).double() + 0.1, torch.arange(6), 1, torch.quint8),
        "floats": channel(weight, *floats, 0, torch.quint8),
        "packed": channel(weight, *floats, 0, torch.quint4x2),
        "plain": weight,
    }


def sparse() -> dict[str, Any]:
    dense = torch.zeros(4, 6)
    dense[0, 1], dense[2, 3], dense[3, 5] = 1.0, -2.0, 3.0
    twice = torch.sparse_coo_tensor([[0, 0, 2], [1, 1, 3]], [1.0, 2.0, 3.0], (4, 6), check_invariants=True)
    return {
        "coo": dense.to_sparse_coo(),
        "uncoalesced": twice,
        "hybrid": torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 3), (3, 3), check_invariants=True),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 3)),
        "bsc": dense.to_sparse_bsc((2, 3)),
        "complex": dense.to(torch.complex128).to_sparse_coo(),
        "empty": torch.zeros(0, 5).to_sparse_coo(),
        "plain": dense,
    }


def others() -> dict[str, Any]:
    z = torch.randn(3, 2, dtype=torch.complex128)
    return {
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(1, 2)]),
        "z": z,
        "z.conj": z.conj(),
        "z.turned": z.T,
        "z.again": z,
        "z.scalar": torch.tensor(1 + 2j, dtype=torch.complex128),
        "half": torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex32),
        "bits": torch.arange(4, dtype=torch.uint8).view(torch.bits8),
        "plain": torch.arange(3),
    }


def same(a: Any, b: Any) -> bool:
    """Whether two tensors are of one kind and hold the same, bit for bit."""
    if (a.dtype, a.layout, a.is_quantized, a.is_nested) != (b.dtype, b.layout, b.is_quantized, b.is_nested):
        return False
    if a.is_nested:
        return len(a.unbind()) == len(b.unbind()) and all(map(same, a.unbind(), b.unbind()))
    if a.shape != b.shape:
        return False
    if a.layout is torch.sparse_coo:
        parts = [(t._indices(), t._values()) for t in (a, b)]
        return a.is_coalesced() == b.is_coalesced() and all(map(same, *parts))
    if a.layout in (torch.sparse_csr, torch.sparse_bsr):
        return all(map(same, *((t.crow_indices(), t.col_indices(), t.values()) for t in (a, b))))
    if a.layout in (torch.sparse_csc, torch.sparse_bsc):
        return all(map(same, *((t.ccol_indices(), t.row_indices(), t.values()) for t in (a, b))))
    if a.is_quantized:
        if a.qscheme() != b.qscheme():
            return False
        if a.qscheme() == torch.per_tensor_affine:
            return (a.q_scale(), a.q_zero_point()) == (b.q_scale(), b.q_zero_point()) and same(
                a.int_repr(), b.int_repr()
            )
        tensors = [(t.q_per_channel_scales(), t.q_per_channel_zero_points()) for t in (a, b)]
        axes = a.q_per_channel_axis() == b.q_per_channel_axis()
        return axes and all(map(same, *tensors)) and same(a.int_repr(), b.int_repr())
    if a.dtype is torch.bits8:
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    if a.dtype is torch.complex32:
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return bool((a == b).all())


@pytest.mark.parametrize("make", [quantized, sparse, others])
@pytest.mark.parametrize("shard_size", [None, 150])
def test_every_kind_comes_back(tmp_path: Path, make: Any, shard_size: int | None) -> None:
    state = make()
    torch.save(state, tmp_path / "source.pt")
    target = tmp_path / ("shards" if shard_size else "out.safetensors")
    done = convert(tmp_path / "source.pt", target, decomposing=True, shard_size=shard_size)
    convert(target, tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state.keys()
    assert [name for name, tensor in state.items() if not same(back[name], tensor)] == []
    assert done.source.sha256 == of(tmp_path / "source.pt") == of(target) == of(tmp_path / "back.pt")


@pytest.mark.parametrize("make", [quantized, sparse, others])
def test_pt_holds_them_as_they_are(tmp_path: Path, make: Any) -> None:
    state = make()
    torch.save(state, tmp_path / "source.pt")
    convert(tmp_path / "source.pt", tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(loaded) == list(state)
    assert [name for name, tensor in state.items() if not same(loaded[name], tensor)] == []
    assert of(tmp_path / "out.pt") == of(tmp_path / "source.pt")
    assert open_checkpoint(tmp_path / "out.pt").refusals == ()


def test_the_parts_are_what_torch_gives(tmp_path: Path) -> None:
    state = {**quantized(), **sparse(), **others()}
    torch.save(state, tmp_path / "source.pt")
    done = convert(tmp_path / "source.pt", tmp_path / "out.safetensors", decomposing=True)
    found = safetensors_torch.load_file(tmp_path / "out.safetensors")
    first, channels, coo, csc, z = (state[name] for name in ("first", "channels", "coo", "csc", "z.conj"))
    expected = {
        "first.values": first.int_repr(),
        "first.scale": torch.tensor(0.05, dtype=torch.float64),
        "first.zero_point": torch.tensor(3),
        "channels.values": channels.int_repr(),
        "channels.scales": channels.q_per_channel_scales(),
        "channels.zero_points": channels.q_per_channel_zero_points(),
        "channels.axis": torch.tensor(0),
        "coo.indices": coo._indices(),
        "coo.values": coo._values(),
        "coo.size": torch.tensor([4, 6]),
        "csc.ccol_indices": csc.ccol_indices(),
        "csc.row_indices": csc.row_indices(),
        "csc.values": csc.values(),
        "complex.values.values": torch.view_as_real(state["complex"]._values()),
        "z.conj.values": torch.view_as_real(z.resolve_conj()),
        "packed.values": torch.frombuffer(bytearray(state["packed"].untyped_storage().tolist()), dtype=torch.uint8),
        "plain": state["plain"],
    }
    for name, tensor in expected.items():
        kept = name if name in found else done.plan.aliases[name].of
        assert torch.equal(found[kept], tensor), name
        assert found[kept].dtype == tensor.dtype
    assert "z.values" not in found  # held once, as z.again's


def test_tied_quantized_tensors_stay_tied(tmp_path: Path) -> None:
    torch.save(quantized(), tmp_path / "source.pt")
    convert(tmp_path / "source.pt", tmp_path / "between.safetensors", decomposing=True)
    for source in ("source.pt", "between.safetensors"):
        convert(tmp_path / source, tmp_path / "out.pt", force=True)
        (found,) = open_checkpoint(tmp_path / "out.pt").state_dicts
        assert found["first"].storage is found["again"].storage


@pytest.mark.parametrize("name", ["zip/quantized.pt", "zip/sparse.pt", "zip/nested_tensor.pt", "zip/subclasses.pt"])
def test_fixtures_are_told_as_what_they_were(run: Any, tmp_path: Path, name: str) -> None:
    convert(FIXTURES / name, tmp_path / "out.safetensors", decomposing=True)
    assert of(tmp_path / "out.safetensors") == of(FIXTURES / name)
    before, after = (
        {
            t["name"]: t
            for t in json.loads(run("inspect", path, "--tensors", "--format", "json").stdout)["files"][0]["tensors"]
        }
        for path in (FIXTURES / name, tmp_path / "out.safetensors")
    )
    assert before.keys() == after.keys()
    assert run("diff", FIXTURES / name, tmp_path / "out.safetensors").exit_code == 0
    for key, tensor in before.items():
        assert {k: tensor[k] for k in ("dtype", "shape")} == {k: after[key][k] for k in ("dtype", "shape")}


def test_blocks_of_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "source.gguf", "test")
    kind = gguf.GGMLQuantizationType.Q4_0
    blocks = gguf.quants.quantize(torch.randn(4, 64).numpy(), kind)
    writer.add_tensor("weight", blocks, raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    source = tmp_path / "source.gguf"
    convert(source, tmp_path / "out.safetensors", decomposing=True)
    assert of(tmp_path / "out.safetensors") == of(source)
    written = safetensors_torch.load_file(tmp_path / "out.safetensors")["weight.blocks"]
    assert written.numpy().tobytes() == blocks.tobytes()
    with pytest.raises(UnsupportedFeature, match=r"--decompose writes tensors as their parts, into \.safetensors"):
        prepare(str(tmp_path / "out.safetensors"), str(tmp_path / "back.pt"))


def test_a_part_s_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    state = {"q": torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.qint8), "q.values": torch.ones(2)}
    state |= {"q.scale": torch.ones(1), "q.scale_2": torch.ones(4)}
    torch.save(state, tmp_path / "source.pt")
    done = convert(tmp_path / "source.pt", tmp_path / "out.safetensors", decomposing=True)
    assert done.plan.composites["q"].parts == {
        "values": "q.values_2",
        "scale": "q.scale_3",
        "zero_point": "q.zero_point",
    }
    convert(tmp_path / "out.safetensors", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(same(back[name], tensor) for name, tensor in state.items())


def test_names_change_with_their_parts(tmp_path: Path) -> None:
    torch.save({f"module.{k}": v for k, v in sparse().items()}, tmp_path / "source.pt")
    names = Names(strip="auto", renames=[("coo", "hash#mark")], drop=["module.csr"])
    done = convert(tmp_path / "source.pt", tmp_path / "out.safetensors", decomposing=True, names=names)
    assert not done.plan.complete
    assert done.plan.composites["hash#mark"].parts["indices"] == "hash#mark.indices"
    convert(tmp_path / "out.safetensors", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert same(back["hash#mark"], sparse()["coo"])


def test_casting_leaves_what_is_taken_apart(tmp_path: Path) -> None:
    torch.save(sparse() | quantized(), tmp_path / "source.pt")
    for target in ("out.safetensors", "out.pt"):
        done = convert(tmp_path / "source.pt", tmp_path / target, decomposing=True, dtype=BY_NAME["float16"])
        assert [e.name for e in done.plan.entries if e.dtype != e.tensor.dtype] == ["plain"]


# --- what is said


def test_the_command(run: Any, tmp_path: Path) -> None:
    source = FIXTURES / "zip" / "sparse.pt"
    done = run("convert", source, tmp_path / "out.safetensors")
    assert done.exit_code == 2
    assert done.stderr == (
        f"ckpt: {source}: 7 tensors cannot be written: coo (sparse_coo), uncoalesced (sparse_coo), hybrid "
        "(sparse_coo), csr (sparse_csr), csc (sparse_csc), bsr (sparse_bsr), bsc (sparse_bsc). --decompose "
        "writes tensors as their parts, into .safetensors; --drop GLOB leaves them out\n"
    )
    done = run("convert", source, tmp_path / "out.safetensors", "--decompose", "--report", tmp_path / "story.json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("8 tensors, 7 of them as their parts, ")
    story = json.loads((tmp_path / "story.json").read_text())["files"][0]
    assert story["decomposed"]["hybrid"] == {
        "dtype": "float32",
        "shape": [3, 2],
        "layout": "sparse_coo",
        "details": {"coalesced": False},
        "elements": None,
        "parts": {"indices": "hybrid.indices", "values": "hybrid.values", "size": "hybrid.size"},
    }
    shown = run("convert", source, tmp_path / "new.safetensors", "--decompose", "--dry-run").stdout
    assert "  csr          sparse_csr  csr.crow_indices, csr.col_indices, csr.values, csr.size\n" in shown


def test_formats_without_a_place_for_it_refuse(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"--decompose writes \.safetensors: \.npz has no place"):
        prepare(str(FIXTURES / "zip" / "sparse.pt"), str(tmp_path / "out.npz"), decomposing=True)


def test_what_has_no_bytes_cannot_be_taken_apart(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(3, device="meta"), "b": torch.ones(1)}, tmp_path / "source.pt")
    with pytest.raises(UnsupportedFeature, match=r"a \(on the meta device: .*Leave them out with --drop GLOB, or turn"):
        prepare(str(tmp_path / "source.pt"), str(tmp_path / "out.safetensors"), decomposing=True)


def test_attributes_of_classes_are_told(tmp_path: Path) -> None:
    done = convert(FIXTURES / "zip" / "subclasses.pt", tmp_path / "out.safetensors", decomposing=True)
    assert done.plan.values["tagged.tag"] == "layer 3"
    assert ("gone.models.TaggedTensor", "the class of 1 tensor, plain in the output: tagged") in done.plan.left


# --- notes that are not true


def noted(tmp_path: Path, decomposed: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and types in a file of ``q.values`` and ``q.scale`` with a note of *decomposed*."""
    tensors = {"q.values": torch.arange(6, dtype=torch.uint8), "q.scale": torch.tensor(0.5, dtype=torch.float64)}
    note = json.dumps({"decomposed": decomposed})
    safetensors_torch.save_file(tensors, tmp_path / "in.safetensors", {NOTE: note})
    (found,) = open_checkpoint(tmp_path / "in.safetensors").state_dicts
    return [(tensor.name, tensor.dtype.name) for tensor in found.tensors]


TRUE = {
    "dtype": "quint8",
    "shape": [2, 3],
    "layout": "strided",
    "details": {"qscheme": "per_tensor_affine"},
    "elements": "values",
    "parts": {"values": "q.values", "scale": "q.scale"},
}


def test_a_true_note_is_taken(tmp_path: Path) -> None:
    assert noted(tmp_path, {"q": TRUE}) == [("q", "quint8")]
    assert noted(tmp_path, {"q": {**TRUE, "dtype": "complex64", "shape": []}}) != [("q", "complex64")]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 4]},
        {"shape": [2, -3]},
        {"shape": "6"},
        {"shape": [1] * 65},
        {"dtype": "int64"},
        {"dtype": 3},
        {"dtype": ""},
        {"layout": "dense"},
        {"layout": ["strided"]},
        {"details": []},
        {"elements": "scale"},
        {"elements": "nothing"},
        {"elements": 1},
        {"parts": {"values": "q.values", "scale": "gone"}},
        {"parts": {"values": "q.values", "scale": "q.values"}},
        {"parts": {"values": ["q.values"]}},
        {"parts": {}},
        {"parts": "q.values"},
        {"subclass": 3},
    ],
)
def test_a_note_that_is_not_true_changes_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    assert sorted(noted(tmp_path, {"q": {**TRUE, **change}})) == [("q.scale", "float64"), ("q.values", "uint8")]


def test_notes_that_contend_for_a_part_or_go_round_in_circles(tmp_path: Path) -> None:
    one = {**TRUE, "parts": {"values": "q.values"}}
    assert sorted(noted(tmp_path, {"a": one, "b": one})) == [("a", "quint8"), ("q.scale", "float64")]
    circle = {**TRUE, "elements": None}
    notes = {"a": {**circle, "parts": {"x": "b"}}, "b": {**circle, "parts": {"x": "a"}}, "q.scale": TRUE, "c": 3}
    assert sorted(noted(tmp_path, notes)) == [("q.scale", "float64"), ("q.values", "uint8")]


@pytest.mark.parametrize(
    "change",
    [
        {"parts": {"values": "q.values"}},  # and no scale
        {"parts": {"values": "q.values", "scale": "q.scale"}},  # and no zero point
        {"parts": {"values": "q.values", "scale": "many", "zero_point": "q.scale"}},
        {"parts": {"values": "q.values", "scales": "many", "zero_points": "q.scale"}},
    ],
)
def test_a_quantized_tensor_that_lacks_something_stays_out_of_a_pt(tmp_path: Path, change: dict[str, Any]) -> None:
    tensors = {"q.values": torch.arange(6, dtype=torch.uint8), "q.scale": torch.tensor(0.5, dtype=torch.float64)}
    tensors["many"] = torch.ones(3, dtype=torch.float64)
    note = json.dumps({"decomposed": {"q": {**TRUE, **change}}})
    safetensors_torch.save_file(tensors, tmp_path / "in.safetensors", {NOTE: note})
    with pytest.raises(UnsupportedFeature, match=r"q \(quantized\)"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.pt")


def test_scales_that_are_no_numbers(tmp_path: Path) -> None:
    from ckpt_tools.checkpoint import TensorInfo
    from ckpt_tools.contents import parts_of, read_bytes

    tensor = TensorInfo("q", BY_NAME["qint8"], (1,), (1,), details={"scale": 0.5, "zero_point": -3})
    assert [(label, read_bytes(part)) for label, part in parts_of(tensor)] == [
        ("scale", struct.pack("<d", 0.5)),
        ("zero_point", struct.pack("<q", -3)),
    ]
    for details in ({"scale": "x"}, {"scale": 0.5, "zero_point": 1 << 70}, {"axis": 0.5}):
        with pytest.raises(CorruptFile, match=r"q has a (scale|zero_point|axis) that is no such number"):
            parts_of(TensorInfo("q", BY_NAME["qint8"], (1,), (1,), details=details))
