"""Models in a runtime: what is not one is an error that says so."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from dfqlab.deployment import ExportedModel, OnnxModel, OpenVinoModel, export_onnx
from dfqlab.deployment.export import to_onnx
from dfqlab.deployment.runtime import session_options
from dfqlab.errors import ConfigurationError, DataError, DeploymentError
from dfqlab.teachers import Teacher


@pytest.fixture(scope="module")
def file(mixed: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(mixed, tmp_path_factory.mktemp("models") / "mixed.onnx")


@pytest.fixture(params=[OnnxModel, OpenVinoModel], ids=lambda runtime: runtime.runtime)
def runtime(request: pytest.FixtureRequest) -> type[ExportedModel]:
    found: type[ExportedModel] = request.param
    return found


@pytest.mark.parametrize("kind", [str, Path, onnx.load])
def test_a_file_runs(runtime: type[ExportedModel], file: Path, mixed: Teacher, pixels: Tensor, kind: Any) -> None:
    run = runtime(kind(file))
    assert run.bytes == file.stat().st_size
    assert run.size == (3, 16, 16)
    assert torch.allclose(run(pixels), mixed(pixels), atol=1e-4)


def test_a_session_with_the_runtimes_own_defaults_gives_the_same(file: Path, pixels: Tensor) -> None:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": pixels.numpy()})
    assert np.allclose(OnnxModel(file)(pixels).numpy(), logits, atol=1e-5)


def test_a_file_that_is_not_there_is_an_error(runtime: type[ExportedModel], tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"no such file: .*nothing\.onnx"):
        runtime(tmp_path / "nothing.onnx")
    with pytest.raises(DeploymentError, match="no such file"):
        runtime(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model at all", None], ids=["empty", "garbage", "truncated"])
def test_a_file_that_is_no_model_is_an_error(
    runtime: type[ExportedModel], file: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(DeploymentError, match=r"cannot load .*broken\.onnx: .+") as caught:
        runtime(path)
    assert "\n" not in str(caught.value)


def test_a_model_with_other_inputs_is_an_error(runtime: type[ExportedModel], file: Path) -> None:
    proto = onnx.load(str(file))
    for node in proto.graph.node:
        node.input[:] = ["data" if name == "images" else name for name in node.input]
    proto.graph.input[0].name = "data"
    with pytest.raises(DeploymentError, match="maps data to logits; expected a classifier that dfqlab exported"):
        runtime(proto)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 8, 8), (2, 3, 16, 17)])
def test_images_of_another_size_are_an_error(runtime: type[ExportedModel], file: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"takes images \(n, 3, 16, 16\), got"):
        runtime(file)(torch.zeros(shape))


def test_what_fails_inside_the_runtime_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def run(self, *arguments: Any) -> None:
            raise RuntimeError("out of memory\nat many lines of C++")

        def get_inputs(self) -> Any:
            return session.get_inputs()

    model = OnnxModel(file)
    session = model.session
    monkeypatch.setattr(model, "session", Failing())
    with pytest.raises(DeploymentError, match=r"cannot run .*mixed\.onnx: out of memory$"):
        model(torch.zeros(1, 3, 16, 16))


def test_images_need_not_be_contiguous_nor_detached(runtime: type[ExportedModel], file: Path, pixels: Tensor) -> None:
    run = runtime(file)
    expected = run(pixels)
    backwards = pixels.flip(3).contiguous().flip(3).requires_grad_()
    assert torch.equal(run(backwards), expected)
    assert torch.equal(run(pixels.to(memory_format=torch.channels_last)), expected)


def test_the_thread_count_reaches_the_session(mixed: Teacher) -> None:
    model = OnnxModel(to_onnx(mixed), threads=1)
    assert model.session.get_session_options().intra_op_num_threads == 1
    assert session_options(onnxruntime, threads=3).intra_op_num_threads == 3


def test_it_runs_as_anybody_runs_the_file(file: Path) -> None:
    by_default = onnxruntime.SessionOptions().graph_optimization_level
    assert OnnxModel(file).session.get_session_options().graph_optimization_level == by_default


@pytest.mark.parametrize(
    ("module", "task"), [("onnx", "export"), ("onnxscript", "export"), ("onnx", "run"), ("onnxruntime", "run")]
)
def test_without_the_extra_the_error_names_it(
    mixed: Teacher, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, task: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # `import` then says that there is none
    with pytest.raises(ConfigurationError, match=r'pip install "dfqlab\[deploy\]"'):
        OnnxModel(file) if task == "run" else export_onnx(mixed, tmp_path / "never.onnx")
    assert not any(tmp_path.iterdir())
