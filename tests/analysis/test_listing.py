"""The lines that git compares: the same for the same content, others for other content, whatever the file."""

import hashlib
import json
import re
import shutil
import struct

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.digest import digest
from ckpt_tools.analysis.listing import DIGITS, listing, unreadable
from ckpt_tools.checkpoint import Checkpoint, Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError
from ckpt_tools.sources import MemorySource, open_source

TENSOR = re.compile(r"^(.*) (\w+) \[([\d,]*)\] ([0-9a-f]{16}|= .*)?")


def lines_of(target):
    return list(listing(open_checkpoint(target)))


def tensors_of(target):
    return [line for line in lines_of(target) if TENSOR.match(line)]


def safetensors(**tensors):
    """A file of one-dimensional float32 tensors."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_state_dict(fixtures_dir):
    path = fixtures_dir / "zip" / "mlp.pt"
    sha256 = {}
    for tensor in open_checkpoint(path).state_dicts[0].tensors:
        sha256[tensor.name] = digest([tensor]).tensors[0].sha256[:DIGITS]
    assert lines_of(path) == [
        "format: PyTorch zip archive (torch.save)",
        "kind: state_dict",
        "archive version: 3",
        "torch: 2.7 or later (inferred from the archive's members)",
        "torch.load(weights_only=True): takes it",
        "imports: collections.OrderedDict",
        "imports: torch._utils._rebuild_tensor_v2",
        "imports: torch.FloatStorage",
        f"fc1.weight float32 [8,4] {sha256['fc1.weight']}",
        f"fc1.bias float32 [8] {sha256['fc1.bias']}",
        f"fc2.weight float32 [3,8] {sha256['fc2.weight']}",
        f"fc2.bias float32 [3] {sha256['fc2.bias']}",
        "_metadata: version 1 of 4 modules",
    ]


def test_a_training_checkpoint(fixtures_dir):
    lines = lines_of(fixtures_dir / "training" / "adam.pt")
    assert "epoch = 5" in lines
    assert "optimizer_state_dict.param_groups[0].lr = 0.0005" in lines
    assert "optimizer_state_dict.param_groups[0].betas[1] = 0.999" in lines
    step = struct.pack("<f", 2.0)
    assert f"optimizer_state_dict.state[0].step float32 [] {hashlib.sha256(step).hexdigest()[:16]} (2.0)" in lines
    assert sum(line.startswith("optimizer_state_dict.state[0].exp_avg ") for line in lines) == 1
    assert not any(line.startswith("pickle ") for line in lines)


def test_a_full_model(fixtures_dir):
    lines = lines_of(fixtures_dir / "model" / "tied.pt")
    start = lines.index("(root): gone.models.TiedLM training=True")
    assert [line.partition(" ")[0] for line in lines[start + 1 :]] == ["embed:", "embed.weight", "head:", "head.weight"]
    assert lines[-1] == "head.weight float32 [16,6] = embed.weight trainable"
    assert lines[-2] == "head: torch.nn.modules.linear.Linear training=True in_features=6 out_features=16"


def test_a_changed_setting_of_a_module_shows(fixtures_dir):
    trained, evaluated = (lines_of(fixtures_dir / "model" / f"{name}.pt") for name in ("cnn", "eval_mode"))
    changed = [(a, b) for a, b in zip(trained, evaluated, strict=True) if a != b and not TENSOR.match(a)]
    assert changed
    assert all(b == a.replace("training=True", "training=False") for a, b in changed)


@pytest.mark.parametrize("other", ["protocol_4", "alignment_512", "repacked_deflated", "zip64", "torch_1_6"])
def test_how_it_is_stored_does_not_show(other, fixtures_dir):
    assert tensors_of(fixtures_dir / "zip" / f"{other}.pt") == tensors_of(fixtures_dir / "zip" / "mlp.pt")


def untied(path):
    """The tensors' lines in any order, the digest with each name."""
    found = [line.split(" ", 3) for line in tensors_of(path)]
    digests = {name: last for name, _, _, last in found}
    return {(name, dtype, shape, digests.get(last.removeprefix("= "), last)) for name, dtype, shape, last in found}


def test_the_same_weights_in_another_format_have_the_same_lines(fixtures_dir, run, tmp_path):
    for name in ("zip/mlp.pt", "legacy/by_torch.pt", "tar/state_dict.pt"):
        done = run("convert", fixtures_dir / name, tmp_path / "same.safetensors", "--force")
        assert done.exit_code == 0, done.stderr
        assert untied(tmp_path / "same.safetensors") == untied(fixtures_dir / name)


def test_the_file_name_does_not_show(fixtures_dir, tmp_path):
    path = fixtures_dir / "training" / "custom_objects.pt"
    shutil.copy(path, tmp_path / "epoch_7_acc_0.5.pt")
    assert lines_of(tmp_path / "epoch_7_acc_0.5.pt") == lines_of(path) == lines_of(path.read_bytes())
    assert "custom_objects" not in "".join(lines_of(path))


def test_only_the_line_of_what_changed_changes():
    before, after = safetensors(a=[1.0, 2.0], b=[3.0], c=[-0.0]), safetensors(a=[1.0, 2.0], b=[3.0000002], c=[-0.0])
    changed = [(a, b) for a, b in zip(lines_of(before), lines_of(after), strict=True) if a != b]
    assert [(a.split()[0], b.split()[0]) for a, b in changed] == [("b", "b")]


def test_a_tensor_that_grows_moves_no_other_line():
    before, after = safetensors(a=[1.0], b=[3.0]), safetensors(a=[1.0, 2.0], b=[3.0])
    assert [line for line in lines_of(before) if line not in lines_of(after)] == [
        f"a float32 [1] {hashlib.sha256(struct.pack('<f', 1.0)).hexdigest()[:16]}"
    ]


def test_a_name_stays_on_its_line():
    lines = lines_of(safetensors(**{"a\nb float32 [1] 0000000000000000": [1.0], "r\u202etl": [1.0], "": [2.0]}))
    assert len(lines) == len(lines_of(safetensors(a=[1.0], b=[1.0], c=[2.0])))
    assert any(line.startswith("a\\nb float32 [1] 0000000000000000 float32 [1]") for line in lines)
    assert any(line.startswith("r\\u202etl float32 [1]") for line in lines)


def test_every_tensor_of_every_fixture_is_listed_by_its_content(fixtures_dir):
    manifest = json.loads((fixtures_dir / "MANIFEST.json").read_text("utf-8"))
    looked_at = 0
    for entry in manifest["fixtures"]:
        if "error" in entry or "anomaly" in entry.get("facts", {}):  # some of which are refused
            continue
        checkpoint = open_checkpoint(fixtures_dir / entry["file"])
        text = "\n".join(listing(checkpoint))
        tensors = [t for s in checkpoint.state_dicts for t in s.tensors]
        if checkpoint.module is not None:
            tensors += checkpoint.module.state_dict().tensors
        for tensor in tensors:
            if any(storage.missing for storage in tensor.storages()):
                continue
            try:
                found = digest([tensor]).tensors
            except CkptError:
                assert " no bytes" in text
                continue
            shown = {tensor.name, *(f"{tensor.name}#{label}" for label, _ in tensor.parts)}
            for part in found:
                if part.name not in shown:  # a scale that is one number, told as it is
                    continue
                looked_at += 1
                assert part.sha256[:DIGITS] in text, (entry["file"], part.name)
        assert all(line.isprintable() for line in text.split("\n"))
    assert looked_at > 400


def test_long_values_are_told_by_a_digest(torch, tmp_path):
    torch.save({"text": "y" * 300, "bits": 1 << 900, "data": b"z" * 300, "short": "é\n"}, tmp_path / "a.pt")
    lines = lines_of(tmp_path / "a.pt")
    assert f'text = "{"y" * 199}… (300 in all, {hashlib.sha256(b"y" * 300).hexdigest()[:16]})' in lines
    assert f"bits = an integer of 901 bits, {hashlib.sha256(hex(1 << 900).encode()).hexdigest()[:16]}" in lines
    assert 'short = "é\\n"' in lines


def test_what_words_do_not_tell_shows_in_the_digest_of_the_pickle(torch, tmp_path):
    found = []
    for text in ("a" * 100_000, "b" * 100_000):
        torch.save({"w": torch.zeros(2), "log": text}, tmp_path / "m.pt")
        found.append(lines_of(tmp_path / "m.pt"))
    changed = [(a, b) for a, b in zip(*found, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][0].startswith("log = " if "log = " in changed[0][0] else "pickle data.pkl: ")


def test_a_damaged_file_is_told_with_what_it_holds(fixtures_dir):
    path = fixtures_dir / "refused" / "lfs_pointer.pt"
    with pytest.raises(CkptError) as caught:
        open_checkpoint(path)
    first, second = unreadable(open_source(path), caught.value)
    assert first.startswith("unreadable: ")
    assert "LFS" in first
    assert str(path) not in first
    data = path.read_bytes()
    assert second == f"content: {len(data):,} bytes, {hashlib.sha256(data).hexdigest()[:16]}"


def test_a_tensor_whose_bytes_are_missing_says_so(fixtures_dir):
    assert [line for line in lines_of(fixtures_dir / "zip" / "meta.pt") if "no bytes" in line] == [
        "weight float32 [2,3] no bytes meta",
        "bias float32 [2] no bytes meta",
    ]
    storage = Storage(MemorySource(b"1234567", "cut"), 0, 8, BY_NAME["float32"], "cpu", "0")
    short = TensorInfo("w", BY_NAME["float32"], (2,), (1,), 0, storage)
    cut = Checkpoint("cut.pt", storage.source, "torch_zip", "a title", "state_dict", loose=((("w",), short),))
    assert list(listing(cut)) == ["format: a title", "kind: state_dict", "w float32 [2] unreadable"]
