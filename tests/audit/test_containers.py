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
    """A tar archive of *members*; a name that ends in a slash is a folder's."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
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


FOLDERS = (("a/", b""), ("b/c/", b""))
README = ("a/README.md", b"# Models\n")
NOTHING = {
    "folders.zip": (packed(FOLDERS), "a zip archive that holds no file"),
    "folders.pt": (packed(FOLDERS), "a zip archive that holds no file"),
    "folders.tar": (tarred(*FOLDERS), "a tar archive that holds no file"),
    "folders.tar.gz": (gzip.compress(tarred(*FOLDERS)), "a file compressed with gzip that holds no file"),
    "empty_file.zip": (packed([("a/x.txt", b"")]), "a zip archive that holds no model: a/x.txt"),
    "text.zip": (packed([README]), "a zip archive that holds no model: a/README.md"),
    "text.tar": (tarred(README), "a tar archive that holds no model: a/README.md"),
    "text.md.gz": (gzip.compress(b"# Models\n"), "a file compressed with gzip that holds no model: text.md"),
    "zip_of_folders.zip": (packed([("in.zip", packed(FOLDERS))]), "a zip archive that holds no model: in.zip"),
    "zip_of_nothing.zip": (packed([("in.zip", packed([]))]), "a zip archive that holds no model: in.zip"),
    "tar_of_folders.tar": (tarred(("in.tar", tarred(*FOLDERS))), "a tar archive that holds no model: in.tar"),
    "deep.zip": (
        packed([("in.zip", packed([("i.tar", tarred(README))]))]),
        "a zip archive that holds no model: in.zip",
    ),
    "nothing.zip": (packed([]), "an empty zip archive"),
    "nothing.txt": (b"", "an empty file"),
}
"""Files in which there is nothing to examine, and what is told of them."""


@pytest.mark.parametrize("name", NOTHING)
def test_an_archive_of_nothing_is_no_model(name: str, tmp_path: Path) -> None:
    data, what = NOTHING[name]
    own, *inside = audited(tmp_path / name, data)
    assert [(finding.code, finding.message) for finding in own.findings] == [("I101", what)]
    assert all(result.skipped for result in inside)
    assert exit_code([own, *inside], "error") == 1
    # nor is it examined where that rule is not asked
    assert exit_code(audited(tmp_path / name, data, Options(Policy(select=("S",)))), "error") == 2


def test_a_folder_of_nothing_is_not_examined(tmp_path: Path) -> None:
    for name, (data, _) in NOTHING.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "sub").mkdir()
    results = list(audit([str(tmp_path)]))
    # only a name that promises a model is told
    assert [(Path(r.path).name, r.findings[0].message) for r in results if r.findings] == [
        ("folders.pt", "a zip archive that holds no file")
    ]
    assert {r.path for r in results if not r.skipped} == {str(tmp_path / "folders.pt")}
    (tmp_path / "folders.pt").unlink()
    assert exit_code(audit([str(tmp_path)]), "error") == 2
    (tmp_path / "model.pth.tar").write_bytes(tarred(README))
    assert exit_code(audit([str(tmp_path)]), "error") == 1


def test_what_an_archive_of_nothing_is_told_for_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "climbs.zip").write_bytes(packed([("../../notes.txt", b"hello\n")]))
    (result, inside) = audit([str(tmp_path)])
    assert sorted(finding.code for finding in result.findings) == ["I101", "S123"]
    assert inside.skipped
    assert exit_code([result, inside], "error") == 1


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_what_is_no_model_is_examined_by_no_other_rule(data: bytes, tmp_path: Path) -> None:
    (result,) = audited(tmp_path / "model.pt", data, Options(Policy(select=("S",))))
    assert result.skipped
    assert exit_code([result], "error") == 2


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
    for path in (tmp_path / "sub" / "bad.pkl", tmp_path / "good.pt"):
        path.unlink()
    (tmp_path / "README.md").write_bytes(b"# Models\n")
    assert exit_code(audit([url]), "error") == exit_code(audit([str(tmp_path)]), "error") == 2


def test_an_archive_of_torch_without_its_pickle_is_not_clean(tmp_path: Path) -> None:
    without = packed([(name, data) for name, data in contents() if not name.endswith("data.pkl")])
    (result,) = audited(tmp_path / "m.pt", without)
    assert [(finding.code, finding.message) for finding in result.findings] == [
        ("I103", "a PyTorch zip archive without its data.pkl")
    ]


def test_a_member_that_is_not_what_its_name_promises_is_told(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123\n"
    members = [("a/good.pt", MLP), ("a/README.md", b"# Models\n"), ("a/lfs.pt", pointer), ("a/none.pth", b"")]
    for name, data in (("m.zip", packed(members)), ("m.tar", tarred(*members))):
        results = audited(tmp_path / name, data)
        found = [(f.code, f.message.partition(",")[0]) for result in results for f in result.findings]
        assert found == [("I101", "a Git LFS pointer"), ("I101", "an empty file")]
