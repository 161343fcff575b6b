"""Every readable fixture converts to both formats; torch and safetensors then load what the manifest says."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.analysis.digest import digest
from ckpt_tools.convert.plan import source_of
from ckpt_tools.convert.run import carry_out, prepare
from ckpt_tools.errors import Ambiguous, CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from tests.formats.as_torch import dense_bytes

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
ENTRIES = [e for e in json.loads((FIXTURES / "MANIFEST.json").read_text("utf-8"))["fixtures"] if "error" not in e]

NO_MODEL = (CkptError, "there is no model in it")
SEVERAL = (Ambiguous, "Choose one with --select")
# what is refused, by fixture and format; "both" where the format makes no difference
REFUSED: dict[tuple[str, str], tuple[type[CkptError], str]] = {
    ("zip/empty_dict.pt", "both"): NO_MODEL,
    ("zip/values.pt", "both"): NO_MODEL,
    ("zip/huge_int.pt", "both"): NO_MODEL,
    ("zip/storages.pt", "both"): NO_MODEL,
    ("model/optimizer_object.pt", "both"): NO_MODEL,
    ("training/optimizer.pt", "both"): NO_MODEL,
    ("pickle/values_protocol_0.pkl", "both"): NO_MODEL,
    ("zip/nested_dicts.pt", "both"): SEVERAL,
    ("model/in_dict.pt", "both"): SEVERAL,
    ("sb3/policy.zip", "both"): SEVERAL,
    ("zip/quantized.pt", ".safetensors"): (UnsupportedFeature, r"quint8 \(quantized\).*--decompose writes"),
    ("zip/sparse.pt", ".safetensors"): (UnsupportedFeature, r"coo \(sparse_coo\).*--decompose writes"),
    ("zip/nested_tensor.pt", ".safetensors"): (UnsupportedFeature, r"nested \(nested\).*--decompose writes"),
    ("zip/meta.pt", "both"): (UnsupportedFeature, r"weight \(on the meta device"),
    ("zip/subclasses.pt", "both"): (UnsupportedFeature, r"pair \(gone.models.PairTensor\)"),
    ("zip/dtypes.pt", ".safetensors"): (UnsupportedFeature, r"complex128 \(complex128, for which safetensors has no"),
    ("sharded/missing_shard", "both"): (CorruptFile, "shards is missing"),
    ("sharded/wrong_index", "both"): (CorruptFile, "in no shard: fc3.weight"),
}


def described(entry: dict[str, Any], path: list[object]) -> dict[str, dict[str, Any]] | None:
    """The manifest's tensors of the state_dict at *path*, by name; None where it says nothing of it."""
    for state_dict in entry.get("state_dicts", ()):
        if state_dict["path"] == path:
            found = {tensor["name"]: tensor for tensor in state_dict["tensors"]}
            return {"tensor": found[""]} if list(found) == [""] else found
    return None


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["file"])
def test_outputs_hold_what_the_manifest_says(entry: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    source, target = FIXTURES / entry["file"], tmp_path / f"out{suffix}"
    if entry["format"] == "deepspeed":
        pytest.skip("how DeepSpeed's parts are put together is the reader's concern")
    refused = REFUSED.get((entry["file"], "both")) or REFUSED.get((entry["file"], suffix))
    if refused:
        with pytest.raises(refused[0], match=refused[1]):
            carry_out(*prepare(str(source), str(target)))
        assert list(tmp_path.iterdir()) == []
        return
    done = carry_out(*prepare(str(source), str(target)))
    # the output's own digest is the source's, made again from what was written
    if done.plan.entries:
        assert digest(source_of(open_checkpoint(target), None).tensors).sha256 == done.source.sha256
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of types that it calls experimental
        loaded = load_file(target) if suffix == ".safetensors" else torch.load(target, weights_only=True)
    for name, alias in done.plan.aliases.items():
        if suffix == ".safetensors" and not alias.stored:
            assert name not in loaded
            loaded[name] = loaded[alias.of]
    if suffix == ".pt":  # which has a place for extra state
        assert {name for name, value in loaded.items() if not isinstance(value, torch.Tensor)} == set(done.plan.extras)
        loaded = {name: value for name, value in loaded.items() if name not in done.plan.extras}
    assert set(loaded) == {tensor.name for tensor in done.plan.state_dict.tensors}
    if suffix == ".pt":
        assert list(loaded) == [tensor.name for tensor in done.plan.state_dict.tensors]
    expected = described(entry, list(done.plan.state_dict.path))
    if expected is not None:
        # test_decompose.py has the others
        loaded = {k: t for k, t in loaded.items() if t.layout is torch.strided and not (t.is_quantized or t.is_nested)}
        kinds = {name for name, t in expected.items() if "quantizer" in t or "components" in t}
        expected = {name: t for name, t in expected.items() if name not in kinds}
        assert {
            name: (str(t.dtype).removeprefix("torch."), list(t.shape), hashlib.sha256(dense_bytes(t)).hexdigest())
            for name, t in loaded.items()
        } == {name: (t["dtype"], t["shape"], t["sha256"]) for name, t in expected.items() if name in loaded}
        # numpy's scalars are values to us; what get_extra_state would return, only the class knows
        told = {*done.plan.values, *(name for name, _ in done.plan.left), "inner._extra_state"}
        assert expected.keys() - loaded.keys() <= told


def test_the_manifest_describes_most_of_them() -> None:
    assert sum(described(entry, []) is not None for entry in ENTRIES) > 50
