"""``ckpt export`` and ``ckpt check-onnx`` as they are called, in a process of their own each."""

import json
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from tests.conftest import ROOT  # noqa: E402
from tests.runtime.onnx_models import HERE, saved  # noqa: E402

SCHEMA = json.loads((ROOT / "docs" / "schema" / "export.schema.json").read_text())


def test_export_then_check_from_the_command_line(run, tmp_path: Path) -> None:
    path = saved(tmp_path)
    target, report = tmp_path / "net.onnx", tmp_path / "report.json"
    words = ("export", path, "--model", f"{HERE}:Net", "--input", "2,3,8,8", "--dynamic", "batch", "-o", target)
    done = run(*words, "--format", "json", "--report", report)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    document = json.loads(report.read_text())
    jsonschema.validate(document, SCHEMA)
    assert (document["command"], document["files"][0]["passed"]) == ("export", True)

    again = run(*words)
    assert (again.exit_code, again.stdout) == (2, "")
    assert again.stderr == f"ckpt: {target}: exists already. --force replaces it\n"

    check = ("check-onnx", target, "--against", path, "--model", f"{HERE}:Net", "--seeds", "1")
    done = run(*check)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{target}: computes what {path} computes with {HERE}:Net; not verified on a GPU\n")


def test_reports_of_a_file_that_fails(run, tmp_path: Path) -> None:
    path, target = saved(tmp_path), tmp_path / "net.onnx"
    words = ("export", path, "--model", f"{HERE}:Loop", "--input", "2,3,8,8", "--dynamic", "batch", "-o", target)
    done = run(*words, "--format", "junit")
    assert done.exit_code == 1
    suite = ElementTree.fromstring(done.stdout)[0]
    failed = [case.attrib["name"] for case in suite if case.find("failure") is not None]
    assert (len(suite), failed) == (12, ["file", "shapes"])
    assert not target.exists()


def test_cuda_that_is_not_there_is_told_apart_by_the_exit_code(run, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    words = ("export", saved(tmp_path), "--model", f"{HERE}:Net", "--input", "2,3,8,8", "-o", tmp_path / "x.onnx")
    done = run(*words, "--provider", "cuda", "--format", "json")
    assert done.exit_code == 2
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document["files"][0]["reason"] == "environment"


def test_questions_that_cannot_be_asked(run, tmp_path: Path) -> None:
    absent = run("check-onnx", tmp_path / "no.onnx", "--against", tmp_path / "no.pt", "--model", "net.py:Net")
    assert (absent.exit_code, absent.stderr) == (2, f"ckpt: {tmp_path / 'no.pt'}: no such file\n")
    words = ("export", saved(tmp_path), "--model", f"{HERE}:Net", "--input", "2,3,8,8", "-o", tmp_path / "x.onnx")
    absent = run(*words, "--inputs", tmp_path / "no.npz")
    assert (absent.exit_code, absent.stderr) == (2, f"ckpt: {tmp_path / 'no.npz'}: no such file\n")
    no_input = run("export", saved(tmp_path), "--model", f"{HERE}:Net", "-o", tmp_path / "x.onnx")
    assert no_input.exit_code == 2
    assert "there is no input to export with. --input gives its sizes" in no_input.stderr


def test_the_python_api(tmp_path: Path) -> None:
    import ckpt_tools

    target = tmp_path / "net.onnx"
    found = ckpt_tools.export(saved(tmp_path), f"{HERE}:Net", target, input="2,3,8,8", seeds=1)
    assert (found.passed, found.reason, found.exit_code) == (True, "", 0)
    found = ckpt_tools.check_onnx(target, against=tmp_path / "Net.pt", model=f"{HERE}:Net", seeds=1)
    assert found.passed
    with pytest.raises(ckpt_tools.CkptError, match="exists already"):
        ckpt_tools.export(tmp_path / "Net.pt", f"{HERE}:Net", target, input="2,3,8,8")
