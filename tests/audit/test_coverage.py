"""Every byte of a file is accounted for, and what hides in odd places is found."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

import numpy
import pytest

from ckpt_tools.audit.coverage import Region
from ckpt_tools.audit.engine import judged
from ckpt_tools.audit.subject import Subject
from ckpt_tools.sources import MemorySource
from tests.audit.archives import MLP, contents, packed, with_member
from tests.audit.cases import FIXTURES
from tests.hostile.assembler import BENIGN, LEGACY

CALL = b"\x80\x02cos\nsystem\nX\x04\0\0\0echo\x85R."
"""A pickle that would run a command."""

EVERYTHING = sorted(
    str(path.relative_to(FIXTURES))
    for folder in FIXTURES.iterdir()
    if folder.is_dir() and folder.name not in ("refused", "__pycache__")
    for path in folder.iterdir()
)


def subject(data: bytes, name: str = "model.pt") -> Subject:
    return Subject.of(MemorySource(data, name), name)


@pytest.mark.parametrize("name", EVERYTHING)
def test_nothing_of_a_sound_file_is_unread(name: str) -> None:
    found = Subject.open(str(FIXTURES / name))
    if found.checkpoint is not None:
        assert found.coverage.unread == ()


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_pickle_is_listed_once(name: str) -> None:
    found = Subject.open(str(FIXTURES / name))
    places = [(pickle.member, pickle.offset) for pickle in found.pickles]
    assert len(places) == len(set(places))


def test_regions_of_an_archive_are_its_members() -> None:
    found = subject(MLP).coverage.regions
    assert [(region.member, region.size, region.how) for region in found] == [
        ("mlp/data.pkl", 487, "examined"),
        ("mlp/.format_version", 1, "inert"),
        ("mlp/.storage_alignment", 2, "inert"),
        ("mlp/byteorder", 6, "inert"),
        ("mlp/data/0", 128, "tensor data"),
        ("mlp/data/1", 32, "tensor data"),
        ("mlp/data/2", 96, "tensor data"),
        ("mlp/data/3", 12, "tensor data"),
        ("mlp/version", 2, "inert"),
        ("mlp/.data/serialization_id", 40, "inert"),
    ]


def test_regions_of_a_flat_file_lie_side_by_side() -> None:
    path = FIXTURES / "legacy/state_dict.pt"
    regions = Subject.open(str(path)).coverage.regions
    assert sum(region.size for region in regions) == path.stat().st_size
    assert [region.offset for region in regions[1:]] == [region.offset + region.size for region in regions[:-1]]
    assert {region.how for region in regions} == {"examined", "tensor data"}


@pytest.mark.parametrize("name", ["mlp/notes.txt", "mlp/extra/model.bin", "mlp/data/99", "mlp/version2", "mlp/.data/x"])
def test_a_pickle_is_found_in_a_member_of_any_name(name: str) -> None:
    found = subject(with_member(name, CALL))
    assert [(pickle.member, str(pickle.globals[0])) for pickle in found.coverage.pickles] == [(name, "os.system")]
    assert found.verdicts[-1].answer == "dangerous"


@pytest.mark.parametrize("deflated", [False, True])
def test_pickles_are_found_in_an_archive_in_an_archive(deflated: bool) -> None:
    inner = packed([*contents(), ("mlp/hidden", CALL)], deflated=deflated)
    outer = packed([*contents(), ("mlp/extra/inner.zip", inner)], deflated=deflated)
    found = subject(outer)
    assert [pickle.member for pickle in found.coverage.pickles] == [
        "mlp/extra/inner.zip: mlp/data.pkl",
        "mlp/extra/inner.zip: mlp/hidden",
    ]
    assert found.coverage.unread == ()


def test_what_lies_too_deep_is_unread() -> None:
    data = CALL
    for level in range(5):
        data = packed([(f"{level}/data.zip", data)] if level else [("0/call.pkl", data)])
    found = subject(data, "deep.zip")
    assert found.error is not None or found.coverage.unread


def test_a_second_pickle_that_the_loader_does_not_reach_is_found() -> None:
    members = [(name, data + CALL if name.endswith("data.pkl") else data) for name, data in contents()]
    found = subject(packed(members))
    assert [str(use) for pickle in found.pickles for use in pickle.globals][-1] == "os.system"
    assert found.coverage.regions[1] == Region("mlp/data.pkl", 487, len(CALL), "examined", "pickles after the pickle")


def test_the_copy_that_torch_does_not_open_is_examined() -> None:
    found = subject(packed([*contents(), ("mlp/data.pkl", CALL)]))
    assert found.checkpoint is not None
    named = [{str(use) for use in pickle.globals} for pickle in found.pickles]
    assert {"os.system"} in named
    assert any("torch._utils._rebuild_tensor_v2" in names for names in named)


@pytest.mark.parametrize("archive", [MLP, packed(contents())], ids=["zip64", "zip"])
def test_a_pickle_before_the_archive_is_found(archive: bytes) -> None:
    found = subject(CALL + archive)
    assert [str(use) for use in found.pickles[0].globals] == ["os.system"]
    assert "zip at the end: mlp/data.pkl" in [pickle.member for pickle in found.pickles]


def test_an_archive_behind_text_is_looked_into() -> None:
    found = subject(b"#!/bin/sh\nexit\n" + with_member("mlp/x", CALL))
    assert [str(use) for use in found.pickles[-1].globals] == ["os.system"]


def test_a_pickle_between_members_is_found() -> None:
    plain = packed(contents())
    at = plain.index(b"PK\x01\x02")
    data = plain[:at] + CALL + plain[at:-6] + struct.pack("<L", at + len(CALL)) + plain[-2:]
    found = subject(data)
    assert found.checkpoint is not None
    assert "os.system" in {str(use) for pickle in found.pickles for use in pickle.globals}


def test_a_pickle_after_the_tensors_of_a_legacy_file_is_found() -> None:
    data = (FIXTURES / "legacy/state_dict.pt").read_bytes()
    found = subject(data + CALL)
    assert [(pickle.member, pickle.offset) for pickle in found.coverage.pickles] == [("after the end", len(data))]
    assert found.coverage.regions[-1] == Region("", len(data), len(CALL), "examined", "pickles after the end")


def test_a_legacy_file_without_tensors_ends_with_its_keys() -> None:
    data = LEGACY + BENIGN + pickle.dumps([], 2)
    found = subject(data)
    assert found.checkpoint is not None
    assert found.checkpoint.format == "torch_legacy"
    assert found.coverage.pickles == ()
    assert sum(region.size for region in found.coverage.regions) == len(data)


@pytest.mark.parametrize(
    ("tail", "how"), [(bytes(600), "inert"), (b"a note\n", "inert"), (bytes(range(1, 256)), "unread")]
)
def test_what_follows_the_end_is_padding_text_or_unread(tail: bytes, how: str) -> None:
    data = (FIXTURES / "legacy/state_dict.pt").read_bytes()
    last = subject(data + tail).coverage.regions[-1]
    assert (last.offset, last.size, last.how) == (len(data), len(tail), how)


def test_what_a_broken_pickle_would_do_before_it_breaks_is_told() -> None:
    found = subject(CALL[:-1] + b"\xff" * 20, "model.pkl")
    assert found.checkpoint is None
    (pickle,) = found.pickles
    assert [str(use) for use in pickle.globals] == ["os.system"]
    assert pickle.problem


def test_what_a_broken_archive_holds_is_told() -> None:
    members = [(name, data) for name, data in contents() if not name.endswith("data/3")]
    found = subject(packed([*members, ("mlp/x", CALL)]))
    assert found.error is not None
    assert [pickle.member for pickle in found.pickles] == ["mlp/data.pkl", "mlp/x"]


@pytest.mark.parametrize(
    "text", [b"import os\nos.system('x')\n", b"class A:\n    pass\n", b"(lp0\n", b"1\n", b"config"]
)
def test_text_is_no_pickle(text: bytes) -> None:
    found = subject(with_member("mlp/notes", text))
    assert found.coverage.pickles == ()
    assert found.coverage.regions[-1] == Region("mlp/notes", 0, len(text), "inert", "text")


def test_an_encrypted_member_is_unread() -> None:
    data = with_member("mlp/secret", b"0123456789")
    entry = data.rindex(b"PK\x01\x02")
    found = subject(data[: entry + 8] + b"\x01" + data[entry + 9 :])
    assert [(region.member, region.what) for region in found.coverage.unread] == [
        ("mlp/secret", "the member is encrypted")
    ]


def test_members_of_a_general_tar_are_not_passed_over() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("model.pkl")
        info.size = len(CALL)
        archive.addfile(info, io.BytesIO(CALL))
    found = subject(out.getvalue(), "models.tar")
    assert found.error is not None
    assert [str(use) for pickle in found.pickles for use in pickle.globals] == ["os.system"]


def test_the_files_of_a_folder_are_each_covered() -> None:
    found = Subject.open(str(FIXTURES / "sharded/safetensors"))
    members = {region.member for region in found.coverage.regions}
    assert members == {
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_the_pickles_of_arrays_are_listed_once() -> None:
    out = io.BytesIO()
    numpy.savez(out, numbers=numpy.zeros(3), objects=numpy.array([{1: 2}, None], dtype=object))
    found = subject(out.getvalue(), "arrays.npz")
    assert [pickle.member for pickle in found.pickles] == ["objects.npy: pickle"]
    assert found.coverage.unread == ()


@pytest.mark.parametrize("stream", [b"cantigravity\nfly\n.", b"\x80\x02cantigravity\nfly\n."])
def test_a_pickle_that_only_imports_is_one(stream: bytes) -> None:
    for found in (subject(stream, "model.pkl"), subject(with_member("mlp/x", stream))):
        assert [str(use) for use in found.pickles[-1].globals] == ["antigravity.fly"]


def test_what_a_tar_of_torch_does_not_hold_is_looked_into() -> None:
    out = io.BytesIO((FIXTURES / "tar/state_dict.pt").read_bytes())
    with tarfile.open(fileobj=out, mode="a") as archive:
        info = tarfile.TarInfo("more.pkl")
        info.size = len(CALL)
        archive.addfile(info, io.BytesIO(CALL))
    found = subject(out.getvalue())
    assert found.checkpoint is not None
    assert [(pickle.member, str(pickle.globals[0])) for pickle in found.coverage.pickles] == [("more.pkl", "os.system")]


def commented(text: bytes) -> bytes:
    """An archive with *text* as its comment."""
    plain = packed(contents())
    return plain[:-2] + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("comment", "how"),
    [
        (b"trained on Tuesday", "inert"),
        (bytes(40), "inert"),
        (bytes(range(1, 60)), "unread"),
        (bytes(8) + CALL, "examined"),
    ],
)
def test_the_comment_of_an_archive_is_looked_at(comment: bytes, how: str) -> None:
    found = subject(commented(comment))
    assert found.checkpoint is not None
    last = found.coverage.regions[-1]
    assert (last.offset + last.size, last.how) == (len(commented(comment)), how)
    assert ("os.system" in {str(use) for pickle in found.pickles for use in pickle.globals}) == (how == "examined")


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (commented(bytes(range(1, 60))), "bytes in the comment of the archive"),
        (packed(contents()) + bytes(range(1, 60)), "bytes behind the end of the archive"),
    ],
)
def test_what_follows_an_archive_is_its_comment_or_is_not(data: bytes, where: str) -> None:
    assert [region.what for region in subject(data).coverage.unread] == [where]


def test_a_length_beyond_the_end_of_the_file_hides_nothing() -> None:
    data = bytearray(with_member("mlp/extra.pkl", CALL))
    last = data.rfind(b"PK\3\4")
    data[last + 28 : last + 30] = b"\xff\xff"  # of the extra field in the local header
    found = judged(subject(bytes(data)))
    assert {"I102", "I203"} & {finding.code for finding in found.findings}
    assert not found.failure


def test_bytes_of_a_member_behind_its_tensor_are_looked_at() -> None:
    members = [(name, data + CALL if name == "mlp/data/2" else data) for name, data in contents()]
    found = subject(packed(members))
    assert found.checkpoint is not None
    assert [(pickle.member, pickle.offset) for pickle in found.coverage.pickles] == [
        ("mlp/data/2: after the tensor's bytes", 96)
    ]


def test_what_follows_the_last_tensor_of_gguf_is_looked_at() -> None:
    data = (FIXTURES / "other/tiny.gguf").read_bytes()  # it ends with the padding of its last tensor
    whole = subject(data, "model.gguf").coverage
    assert whole.unread == ()
    assert sum(region.size for region in whole.regions) == len(data)
    for tail, how, start in ((bytes(64), "inert", 296), (b"\x01\x02\x03" * 9, "unread", len(data))):
        last = subject(data + tail, "model.gguf").coverage.regions[-1]
        assert (last.offset, last.offset + last.size, last.how) == (start, len(data + tail), how)
    found = subject(data + CALL, "model.gguf")
    assert [str(use) for pickle in found.coverage.pickles for use in pickle.globals] == ["os.system"]


def test_what_stands_between_the_tensors_of_gguf_is_looked_at() -> None:
    data = bytearray((FIXTURES / "other/tiny.gguf").read_bytes())
    gap = next(r for r in subject(bytes(data), "model.gguf").coverage.regions if r.what == "zeros between tensors")
    data[gap.offset] = 0xEE
    assert [(r.offset, r.what) for r in subject(bytes(data), "model.gguf").coverage.unread] == [
        (gap.offset, "bytes between tensors")
    ]


def test_views_of_one_storage_are_looked_at_a_few_times(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.tensor(list(b"\x80\x04" + b"N0" * 5000 + b"N."), dtype=torch.uint8)
    found = []
    for count in (2, 200):
        torch.save({str(n): whole[: len(whole) - n] for n in range(count)}, tmp_path / "m.pt")
        pickles = Subject.open(str(tmp_path / "m.pt")).coverage.pickles
        found.append((len(pickles), sum(bool(pickle.problem) for pickle in pickles)))
    assert found[1][1] == 1  # that the rest was not looked at is told, once
    assert found[1][0] <= 8


def test_a_pickle_in_a_tensor_is_told_once(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    held = torch.tensor(list(CALL), dtype=torch.uint8)
    torch.save({"w": {"a.weight": torch.ones(2), "a._extra_state": held}, "again": held}, tmp_path / "m.pt")
    assert len(Subject.open(str(tmp_path / "m.pt")).coverage.pickles) == 1
