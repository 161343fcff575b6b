"""What lies in archives and compressed files is judged like any other file."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.audit import containers
from ckpt_tools.audit.engine import audit
from ckpt_tools.audit.policy import Options, Policy
from ckpt_tools.audit.reports import for_machines
from ckpt_tools.audit.results import Audited, exit_code
from ckpt_tools.render import render
from tests.audit.archives import MLP, contents, packed

CALL = b"\x80\x02cos\nsystem\nX\x04\0\0\0echo\x85R."


def tarred(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


MEMBERS = (("a/good.pt", MLP), ("a/README.md", b"# Models\n"), ("a/bad.pkl", CALL))


def audited(path: Path, data: bytes, options: Options | None = None) -> list[Audited]:
    path.write_bytes(data)
    return list(audit([str(path)], options))


def short(results: list[Audited], path: Path) -> list[tuple[str, str]]:
    return [(r.path.removeprefix(str(path)).removeprefix(": "), "skipped" if r.skipped else r.answer) for r in results]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("models.tar", lambda data: data),
        ("models.tar.gz", gzip.compress),
        ("models.tgz", gzip.compress),
        ("models.tar.bz2", bz2.compress),
        ("models.tar.xz", lzma.compress),
        ("models.tar.z", zlib.compress),
    ],
)
def test_every_member_of_a_tar_is_judged(name: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / name
    results = audited(path, pack(tarred(*MEMBERS)))
    assert short(results, path) == [
        ("", "no pickle"),
        ("a/good.pt", "tensors only"),
        ("a/README.md", "skipped"),
        ("a/bad.pkl", "dangerous"),
    ]
    assert [result.container for result in results] == ["", *[str(path)] * 3]
    assert results[0].findings == ()
    assert exit_code(results, "error") == 1


def test_every_member_of_a_zip_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "models.zip"
    cut = ("a/cut.safetensors", b"\x08\0\0\0\0\0\0\0{}      xyz")
    assert short(audited(path, packed([*MEMBERS, cut])), path) == [
        ("", "no pickle"),
        ("a/good.pt", "tensors only"),
        ("a/README.md", "skipped"),
        ("a/bad.pkl", "dangerous"),
        ("a/cut.safetensors", "no pickle"),
    ]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zlib.compress])
def test_a_compressed_pickle_is_judged(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.pkl.packed"
    assert short(audited(path, pack(CALL)), path) == [("", "no pickle"), ("model.pkl", "dangerous")]


def test_containers_in_containers(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    results = audited(path, tarred(("inner.tar.gz", gzip.compress(tarred(("bad.pkl", CALL))))))
    assert short(results, path)[-1] == ("inner.tar.gz: bad.pkl", "dangerous")
    assert results[-1].container == str(path)
    data = CALL
    for _ in range(6):
        data = tarred(("deep.tar", data))
    results = audited(path, data)
    assert exit_code(results, "error") == 1
    assert results[-1].findings


@pytest.mark.parametrize(
    "data", [tarred(*MEMBERS)[:1500], gzip.compress(tarred(*MEMBERS))[:200], bz2.compress(b"x" * 9)[:-4]]
)
def test_what_breaks_off_is_not_passed_over(data: bytes, tmp_path: Path) -> None:
    results = audited(tmp_path / "models.tar", data)
    assert exit_code(results, "error") == 1
    assert {finding.code for result in results for finding in result.findings} & {"I102", "I103", "I105"}


def test_a_bomb_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_UNPACKED", 1 << 21)
    (result,) = audited(tmp_path / "zeros.gz", gzip.compress(bytes(1 << 22)))
    assert [finding.code for finding in result.findings] == ["I102"]
    assert "decompresses to more than 2,097,152 bytes" in result.findings[0].message


def test_what_was_not_seen_can_be_waived_or_ignored(tmp_path: Path) -> None:
    cut = tarred(*MEMBERS)[:1500]
    assert audited(tmp_path / "a.tar", cut, Options(Policy(ignore=("I",))))[0].findings == ()


def test_a_torch_archive_that_cannot_be_read_is_no_container(tmp_path: Path) -> None:
    moved = packed([(f"deeper/{name}", data) for name, data in contents()])
    (result,) = audited(tmp_path / "m.pt", moved)
    assert [finding.code for finding in result.findings] != []


def test_reports_name_the_file_that_there_is(tmp_path: Path) -> None:
    path = tmp_path / "models.tar"
    results = audited(path, tarred(*MEMBERS))
    (run,) = json.loads(render(for_machines(results), "sarif", command="audit"))["runs"]
    (found,) = [result for result in run["results"] if result["ruleId"] == "S101"]
    location = found["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == path.as_uri()
    assert location["logicalLocations"][0]["name"] == "a/bad.pkl: pickle"
    assert f"::error file={path}," in render(for_machines(results), "github", command="audit")
    assert json.loads(render(for_machines(results), "gitlab", command="audit"))[0]["location"]["path"] == str(path)


def test_a_folder_at_a_url_is_walked(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad.pkl").write_bytes(CALL)
    (tmp_path / "good.pt").write_bytes(MLP)
    url = tmp_path.as_uri()
    results = list(audit([url]))
    assert [(result.path, result.answer, result.container) for result in results] == [
        (url, "no pickle", ""),
        (f"{url}/good.pt", "tensors only", ""),
        (f"{url}/sub/bad.pkl", "dangerous", ""),
    ]


EMPTY = (("a/README.md", b"# Models\n"),)


@pytest.mark.parametrize(
    ("name", "data"), [("m.zip", packed(EMPTY)), ("m.tar", tarred(*EMPTY)), ("m.gz", gzip.compress(b"# Models\n"))]
)
def test_a_container_in_which_nothing_is_a_checkpoint_is_not_clean(name: str, data: bytes, tmp_path: Path) -> None:
    results = audited(tmp_path / name, data)
    assert [finding.code for result in results for finding in result.findings] == ["I101"]
    assert "in which nothing is a checkpoint" in results[0].findings[0].message
    assert exit_code(results, "error") == 1
    in_folder = list(audit([str(tmp_path)]))  # where it was only met
    assert all(result.skipped for result in in_folder)
    assert exit_code(in_folder, "error") == 2


def test_an_archive_of_torch_without_its_pickle_is_not_clean(tmp_path: Path) -> None:
    without = packed([(name, data) for name, data in contents() if not name.endswith("data.pkl")])
    (result,) = audited(tmp_path / "m.pt", without)
    assert [finding.code for finding in result.findings] == ["I101"]


def test_a_member_that_is_not_what_its_name_promises_is_told(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123\n"
    members = [("a/good.pt", MLP), ("a/README.md", b"# Models\n"), ("a/lfs.pt", pointer), ("a/none.pth", b"")]
    for name, data in (("m.zip", packed(members)), ("m.tar", tarred(*members))):
        results = audited(tmp_path / name, data)
        found = [(f.code, f.message.partition(",")[0]) for result in results for f in result.findings]
        assert found == [("I101", "a Git LFS pointer"), ("I101", "an empty file")]
