"""One digest for one set of weights, computed here a second time from torch by the documented rule."""

import hashlib
import json

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.digest import digest

torch = pytest.importorskip("torch")


def by_the_rule(state_dict):
    lines = []
    for name, tensor in state_dict.items():
        raw = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        sizes = ",".join(map(str, tensor.shape))
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines.append((name.encode(), f"{json.dumps(name)} {dtype} [{sizes}] {hashlib.sha256(raw).hexdigest()}\n"))
    return hashlib.sha256("".join(line for _, line in sorted(lines)).encode()).hexdigest()


@pytest.fixture
def weights():
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "z.weight": base,
        "a.transposed": base.T,
        "a.view": base[1:3],
        "é": torch.randn(3, dtype=torch.complex64).conj(),
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
    }


def of(path):
    return digest(open_checkpoint(path).model_state_dict().tensors).sha256


def test_the_rule(tmp_path, weights):
    torch.save(weights, tmp_path / "m.pt")
    assert of(tmp_path / "m.pt") == by_the_rule(weights)


def test_formats_and_order_do_not_count(tmp_path, weights):
    from safetensors.torch import save_file

    plain = {name: tensor.resolve_conj().contiguous().clone() for name, tensor in weights.items()}
    torch.save(weights, tmp_path / "zip.pt")
    torch.save(dict(reversed(plain.items())), tmp_path / "reversed.pt")
    torch.save(weights, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 1, "under": plain}, tmp_path / "nested.pt")
    save_file(plain, tmp_path / "m.safetensors")
    assert {of(path) for path in tmp_path.iterdir()} == {by_the_rule(weights)}


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {**w, "z.weight": w["z.weight"] + 1e-7},
        lambda w: {**w, "z.weight": w["z.weight"].reshape(4, 6)},
        lambda w: {**w, "count": w["count"].int()},
        lambda w: {("renamed" if k == "half" else k): v for k, v in w.items()},
        lambda w: {k: v for k, v in w.items() if k != "none"},
    ],
)
def test_what_counts(tmp_path, weights, change):
    torch.save(weights, tmp_path / "a.pt")
    torch.save(change(weights), tmp_path / "b.pt")
    assert of(tmp_path / "a.pt") != of(tmp_path / "b.pt")


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:Sparse CSR")
def test_tensors_of_other_kinds_count_as_their_parts(tmp_path):
    dense = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]])
    quantized = torch.quantize_per_tensor(dense, 0.5, 1, torch.qint8)
    csr = dense.to_sparse_csr()
    torch.save({"q": quantized, "s": csr}, tmp_path / "m.pt")
    lines = {}
    parts = {
        "q": quantized.int_repr(),
        "q#scale": torch.tensor(0.5, dtype=torch.float64),
        "q#zero_point": torch.tensor(1),
        "s#crow_indices": csr.crow_indices(),
        "s#col_indices": csr.col_indices(),
        "s#values": csr.values(),
        "s#size": torch.tensor([2, 3]),
    }
    for name, tensor in parts.items():
        dtype = "qint8" if name == "q" else str(tensor.dtype).removeprefix("torch.")
        sizes = ",".join(map(str, tensor.shape))
        lines[name] = f"{json.dumps(name)} {dtype} [{sizes}] {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}\n"
    found = digest(open_checkpoint(tmp_path / "m.pt").model_state_dict().tensors)
    assert {line.name: line.line for line in found.tensors} == lines
    torch.save({"q": torch.quantize_per_tensor(2 * dense, 1.0, 1, torch.qint8), "s": csr}, tmp_path / "other.pt")
    other = digest(open_checkpoint(tmp_path / "other.pt").model_state_dict().tensors)
    assert [a.name for a, b in zip(found.tensors, other.tensors, strict=True) if a != b] == ["q#scale"]


def test_write_and_check(run, tmp_path, weights):
    torch.save(weights, tmp_path / "a.pt")
    torch.save({**weights, "count": torch.tensor(8)}, tmp_path / "b.pt")
    assert run("digest", tmp_path / "a.pt", "--write", tmp_path / "record").exit_code == 0
    assert run("digest", tmp_path / "a.pt", "--check", tmp_path / "record").exit_code == 0
    done = run("digest", tmp_path / "b.pt", "--check", tmp_path / "record")
    assert done.exit_code == 1
    assert [line[:9] for line in done.stdout.splitlines()] == ['- "count"', '+ "count"']
    (tmp_path / "other").write_text("something else\n")
    assert run("digest", tmp_path / "b.pt", "--check", tmp_path / "other").exit_code == 2
    assert run("digest", tmp_path / "b.pt", "--check", tmp_path / "nowhere").exit_code == 2


def test_each_of_several_files_has_a_line(run, tmp_path, weights):
    torch.save(weights, tmp_path / "a.pt")
    torch.save({**weights, "count": torch.tensor(8)}, tmp_path / "b.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-900])
    names = ("b.pt", "cut.pt", "nowhere.pt", "a.pt")
    done = run("digest", *names, cwd=tmp_path)
    assert done.exit_code == 2
    assert done.stdout == f"{of(tmp_path / 'b.pt')}  b.pt\n{of(tmp_path / 'a.pt')}  a.pt\n"
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["cut.pt", "nowhere.pt"]
    done = run("digest", "a.pt", "b.pt", "--tensors", cwd=tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line[64:72] for line in done.stdout.splitlines() if "  " in line] == ["  a.pt", "  b.pt"]
    assert len(done.stdout.splitlines()) == 2 * (1 + len(weights))
    assert run("digest", "?.pt", cwd=tmp_path).stdout == run("digest", "a.pt", "b.pt", cwd=tmp_path).stdout
    (tmp_path / "cut.pt").unlink()
    done = run("digest", tmp_path)
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()] == ["a.pt", "b.pt"]
    assert run("digest", cwd=tmp_path).exit_code == 2


@pytest.mark.parametrize("option", ["--write", "--check"])
def test_a_record_is_of_one_file(run, tmp_path, weights, option):
    torch.save(weights, tmp_path / "a.pt")
    done = run("digest", tmp_path / "a.pt", tmp_path / "a.pt", option, tmp_path / "record")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--write and --check take one PATH" in done.stderr
    assert not (tmp_path / "record").exists()


def test_a_file_has_one_line_whatever_its_name(run, tmp_path, weights):
    torch.save(weights, tmp_path / "a\nb.pt")
    assert run("digest", "a\nb.pt", cwd=tmp_path).stdout == f"{by_the_rule(weights)}  a\\nb.pt\n"
