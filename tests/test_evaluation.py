"""Accuracy, agreement and latency, on classifiers whose every answer is known."""

import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dfqlab import evaluation
from dfqlab.compression.model import CompressedModel, load_model
from dfqlab.compression.quantization import quantize
from dfqlab.data import LabelledImages, load_data
from dfqlab.deployment import OnnxModel
from dfqlab.errors import ConfigurationError, DataError, TeacherError
from dfqlab.evaluation import BATCH_SIZE, compare, evaluate, latencies, latency
from dfqlab.images import Noise, StoredImages
from dfqlab.measures import sqnr, wilson
from dfqlab.teachers import Teacher, load_teacher

BRIGHTNESS = [0.0, 0.2, 0.3, 0.45, 0.6, 1.0]
CLASSES = [0, 0, 1, 1, 2, 2]


def judge_of_brightness(steps: tuple[float, float] = (0.25, 0.5)) -> Teacher:
    """Says 0, 1 or 2: how many of two steps the mean of an image is above."""
    linear = nn.Linear(4, 3)
    linear.weight.data = torch.tensor([[0.0], [1.0], [2.0]]).expand(3, 4) / 4
    linear.bias.data = torch.tensor([0.0, -steps[0], -sum(steps)])
    module = nn.Sequential(nn.Flatten(), linear)
    return Teacher.from_module(module, size=(1, 2, 2), mean=[0], std=[1], classes=3)


def flat_images(brightness: list[float] = BRIGHTNESS) -> Tensor:
    return torch.tensor(brightness).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def labelled(labels: list[int], brightness: list[float] = BRIGHTNESS) -> LabelledImages:
    return LabelledImages("flat", flat_images(brightness), torch.tensor(labels))


def test_accuracy_is_the_share_of_right_answers_with_its_interval() -> None:
    found = evaluate(judge_of_brightness(), labelled([0, 1, 1, 2, 2, 2]))
    assert found.correct.tolist() == [True, False, True, False, True, True]
    assert found.accuracy == 4 / 6
    assert found.accuracy_interval == wilson(4, 6)
    assert found.interval == (wilson(4, 6).low, wilson(4, 6).high)


def test_no_teacher_no_agreement() -> None:
    found = evaluate(judge_of_brightness(), labelled(CLASSES))
    assert found.accuracy == 1
    assert found.agrees is found.agreement is found.agreement_interval is found.sqnr is None


def test_agreement_is_with_the_teacher_and_not_with_the_labels() -> None:
    model, teacher = judge_of_brightness((0.1, 0.5)), judge_of_brightness()
    found = evaluate(model, labelled([2, 1, 1, 2, 0, 2]), teacher=teacher)
    assert found.correct.tolist() == [False, True, True, False, False, True]
    assert found.agrees is not None
    assert found.agrees.tolist() == [True, False, True, True, True, True]
    assert found.agreement == 5 / 6
    assert found.agreement_interval == wilson(5, 6)
    assert found.sqnr == pytest.approx(sqnr(teacher(flat_images()), model(flat_images())))


def test_every_batch_counts_and_the_last_may_be_small() -> None:
    count = 2 * BATCH_SIZE + 3
    brightness = torch.rand(count, generator=torch.Generator().manual_seed(0))
    right = (brightness > 0.25).long() + (brightness > 0.5).long()
    labels = right.clone()
    labels[::5] = (labels[::5] + 1) % 3
    found = evaluate(judge_of_brightness(), labelled(labels.tolist(), brightness.tolist()))
    assert found.correct.tolist() == [index % 5 != 0 for index in range(count)]


@pytest.fixture(scope="module")
def digits() -> tuple[CompressedModel, LabelledImages]:
    teacher = load_teacher("digits/vgg")
    noise = Noise(teacher.input, 64, clipped=True)
    return quantize(teacher, noise, weights=8, activations=8, calibration="minmax"), load_data("digits")


def test_torch_and_onnxruntime_agree_on_real_images(digits: tuple[CompressedModel, LabelledImages]) -> None:
    model, data = digits
    by_torch, by_runtime = evaluate(model, data), evaluate(model, data, runtime="onnxruntime")
    assert (by_torch.correct == by_runtime.correct).double().mean() > 0.995
    assert by_torch.agreement == pytest.approx(by_runtime.agreement, abs=0.005)
    assert by_torch.sqnr == pytest.approx(by_runtime.sqnr, abs=0.5)
    # The same through a session that was made before.
    assert torch.equal(evaluate(OnnxModel.of(model), data).correct, by_runtime.correct)


def test_a_compressed_model_is_compared_with_the_teacher_that_it_was_made_from(
    digits: tuple[CompressedModel, LabelledImages], tmp_path: Any
) -> None:
    model, data = digits
    assert model.teacher is not None
    found = evaluate(model, data)
    assert found.agreement == evaluate(model, data, teacher=model.teacher).agreement
    model.save(tmp_path)
    loaded = evaluate(load_model(tmp_path), data)  # a file holds no teacher
    assert loaded.agreement is None
    assert torch.equal(loaded.correct, found.correct)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_teacher_runs_in_another_runtime_too(runtime: Any) -> None:
    found = evaluate(judge_of_brightness(), labelled(CLASSES), runtime=runtime)
    assert found.correct.all()


def test_the_runtime_is_the_one_that_was_asked_for(
    digits: tuple[CompressedModel, LabelledImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = digits
    seen = []
    run = OnnxModel.__call__
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, images: seen.append(len(images)) or run(self, images))
    evaluate(model, data)
    assert seen == []
    evaluate(model, data, runtime="onnxruntime")
    assert sum(seen) == len(data)


@pytest.mark.traces  # checked, the annotation would catch it first
def test_an_unknown_runtime_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'onnxruntime'"):
        evaluate(judge_of_brightness(), labelled(CLASSES), runtime="onnx-runtime")  # type: ignore[arg-type]


class Batches:
    """Labelled batches that nobody checked."""

    def __init__(self, *batches: tuple[Tensor, Tensor]) -> None:
        self.stored = batches

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in self.stored)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.stored


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_an_error(label: int) -> None:
    data = Batches((flat_images(), torch.tensor([0, 0, 1, label, 2, 2])))
    with pytest.raises(DataError, match=rf"a label {label}, and the model knows classes 0 to 2"):
        evaluate(judge_of_brightness(), data)


def test_no_images_are_an_error() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate(judge_of_brightness(), Batches())
    with pytest.raises(DataError, match="no images"):
        compare(judge_of_brightness(), judge_of_brightness(), StoredImages(torch.empty(0, 1, 2, 2)))


def test_images_of_another_size_are_an_error(digits: tuple[CompressedModel, LabelledImages]) -> None:
    model, _ = digits
    data = labelled(CLASSES)
    for wrong in (model, OnnxModel.of(model)):
        with pytest.raises(DataError, match=r"\(n, 1, 16, 16\), got \(6, 1, 2, 2\)"):
            evaluate(wrong, data)
    assert model.teacher is not None
    with pytest.raises(TeacherError, match=r"\(n, 1, 16, 16\), got \(6, 1, 2, 2\)"):
        evaluate(model.teacher, data)


def test_a_comparison_needs_no_labels() -> None:
    model, teacher = judge_of_brightness((0.1, 0.5)), judge_of_brightness()
    agreement, ratio = compare(model, teacher, StoredImages(flat_images()))
    assert agreement == wilson(5, 6)
    assert ratio == pytest.approx(sqnr(teacher(flat_images()), model(flat_images())))
    assert compare(teacher, teacher, StoredImages(flat_images())) == (wilson(6, 6), 200)


class Timed(OnnxModel):
    """A session that moves a clock of our own; the machine gets busier with every pair."""

    now = 0.0
    calls: ClassVar[list[str]] = []

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds, self.threads = name, seconds, 2

    def __call__(self, images: Tensor) -> Tensor:
        Timed.now += self.seconds * (1 + len(self.calls) // 2)
        self.calls.append(self.name)
        return torch.zeros(len(images), 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clock that they move, and who was called."""
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: Timed.now)
    Timed.calls.clear()
    return Timed.calls


def test_latency_times_both_in_turn_so_that_a_busy_machine_slows_both(clock: list[str]) -> None:
    found = latency(Timed("float", 0.003), Timed("quantized", 0.001), torch.zeros(4, 1, 2, 2), runs=11)
    assert clock == ["float", "quantized"] * (5 + 11)  # five that do not count
    # The load goes from 6 to 16. Times are its median, and the ratio does not feel it.
    assert found.float_ms == pytest.approx(3 * 11)
    assert found.quantized_ms == pytest.approx(11)
    assert (found.ratio, found.ratio_low, found.ratio_high) == pytest.approx((3, 3, 3))
    assert (found.batch, found.threads, found.runs) == (4, 2, 11)


def test_runtimes_are_timed_in_one_run_each_against_its_own_float_model(clock: list[str]) -> None:
    pairs = [(Timed("a", 0.003), Timed("b", 0.001)), (Timed("c", 0.002), Timed("d", 0.0005))]
    first, second = latencies(pairs, torch.zeros(1, 1, 2, 2), runs=201)
    assert clock == ["a", "b", "c", "d"] * (5 + 201)
    assert (first.ratio, second.ratio) == pytest.approx((3, 4), rel=0.01)  # the load grows within a round too
    assert first.float_ms / second.float_ms == pytest.approx(1.5, rel=0.01)


def test_latency_of_a_real_run_is_sane(digits: tuple[CompressedModel, LabelledImages]) -> None:
    model, data = digits
    assert model.teacher is not None
    sessions = [OnnxModel.of(m, threads=1) for m in (model.teacher, model)]
    start = time.perf_counter()
    found = latency(*sessions, data.images[:1], runs=20)
    passed = 1000 * (time.perf_counter() - start)
    assert found.float_ms > 0
    assert found.quantized_ms > 0
    assert 10 * (found.float_ms + found.quantized_ms) < passed  # half of the pairs took at least the medians
    assert 0 < found.ratio_low <= found.ratio <= found.ratio_high
    assert (found.batch, found.threads, found.runs) == (1, 1, 20)
