"""The promise of the embedded default, executed by onnxruntime: synthetic images calibrate as real ones do."""

from pathlib import Path

import pytest
import torch

import dfqlab
from dfqlab import pipeline
from dfqlab.deployment import OnnxModel
from dfqlab.errors import DfqlabError
from dfqlab.images import ImageSource, Noise, StoredImages, SyntheticSet
from dfqlab.measures import paired_difference
from dfqlab.pipeline import Job, run
from dfqlab.teachers.names import DEFAULT_TEACHER

pytestmark = pytest.mark.traces


@pytest.fixture(scope="module")
def teacher() -> dfqlab.Teacher:
    return dfqlab.load_teacher(DEFAULT_TEACHER)


@pytest.fixture(scope="module")
def images(teacher: dfqlab.Teacher) -> SyntheticSet:
    return dfqlab.synthesize(teacher, "zeroq", count=128, seed=0)


def right(teacher: dfqlab.Teacher, source: ImageSource, bits: int):
    """1.0 for each held-out digit that the quantized model names, executed by onnxruntime."""
    model = dfqlab.quantize(teacher, source, weights=bits, activations=bits)
    return dfqlab.evaluate(OnnxModel.of(model), dfqlab.load_data("digits")).correct.double()


def test_at_4_bits_they_beat_clipped_noise_and_come_near_real_images(
    teacher: dfqlab.Teacher, images: SyntheticSet
) -> None:
    train = dfqlab.load_data("digits", split="train")
    synthetic = right(teacher, images, 4)
    clipped = right(teacher, Noise(teacher.input, len(images), 0, clipped=True), 4)
    real = right(teacher, StoredImages(next(train.batches(len(images)))[0]), 4)
    gain = paired_difference(synthetic, clipped)
    assert gain.value >= 0.02
    assert gain.low > 0
    assert synthetic.mean() >= real.mean() - 0.02


@pytest.mark.usefixtures("exact_products")
def test_at_8_bits_nothing_is_lost(teacher: dfqlab.Teacher, images: SyntheticSet) -> None:
    float_right = dfqlab.evaluate(teacher, dfqlab.load_data("digits")).correct.double()
    assert right(teacher, images, 8).mean() >= float_right.mean() - 0.005


def test_without_real_data_a_model_that_loses_nothing_agrees_with_its_teacher(tmp_path: Path) -> None:
    """Held-out images are valid pixels: on others the quantized input would clip and be blamed for it."""
    network = dfqlab.load_teacher("digits/vgg")
    job = Job(network, dfqlab.QuantizationSpec(8, 8), "zeroq", count=32, seed=0, settings={"steps": 40})
    report = run(job, tmp_path)
    row = next(row for row in report.rows if row.source == "zeroq")
    assert report.judged_on is None
    assert report.judged_images == 32
    assert row.accuracy is None
    assert row.agreement is not None
    assert row.agreement.value >= 0.9


def test_pictures_and_losses_follow_the_first_batch_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqlab.synthesis.plan.BATCH_SIZE", 8)
    monkeypatch.setattr("dfqlab.pipeline.BATCH_SIZE", 8)
    job = Job(dfqlab.load_teacher("digits/vgg"), dfqlab.QuantizationSpec(8, 8), "zeroq", 20, 0, {"steps": 12})
    report = run(job, tmp_path)
    assert [step for step, _ in report.pictures.snapshots] == [1, 10, 12]
    assert [step for step, _ in report.images.loss_curve] == list(range(1, 13))


def test_images_of_another_size_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    images = SyntheticSet(torch.rand(4, 3, 32, 32), recipe="zeroq")
    job = Job(dfqlab.load_teacher("digits/vgg"), dfqlab.QuantizationSpec(8, 8), "zeroq", 4, 0, images=images)
    with pytest.raises(DfqlabError, match=r"\(3, 32, 32\)|\(4, 3, 32, 32\)"):
        run(job, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_another_version_wrote_is_told_as_it_stands() -> None:
    old = {"batch_size": 128, "dtype": "float32", "compiled": False, "note": ""}
    assert pipeline._plan_in_words(old) == "batch_size 128, dtype float32, compiled False"
    assert pipeline._plan_in_words({}) == ""
