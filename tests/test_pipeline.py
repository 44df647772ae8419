"""The promise of the embedded default, executed by onnxruntime: synthetic images calibrate as real ones do."""

import sys
from dataclasses import replace
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
from dfqlab.pipeline.recorder import plan_in_words
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


@pytest.fixture
def foreign() -> SyntheticSet:
    return SyntheticSet(torch.rand(8, 1, 16, 16), recipe="zeroq", teachers=("f00d" * 16,))


def test_a_set_of_another_network_is_refused_and_both_are_named(tmp_path: Path, foreign: SyntheticSet) -> None:
    vgg = dfqlab.load_teacher("digits/vgg")
    job = Job(vgg, dfqlab.QuantizationSpec(8, 8), "zeroq", 8, 0, images=foreign)
    with pytest.raises(DfqlabError, match=rf"f00df00df00d.*digits/vgg' is {vgg.fingerprint[:12]}.*any_images"):
        run(job, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_it_is_allowed_it_is_resized_and_the_report_warns(tmp_path: Path, foreign: SyntheticSet) -> None:
    vgg = dfqlab.load_teacher("digits/vgg")
    small = replace(foreign, images=foreign.images[..., :12, :12])
    job = Job(
        vgg, dfqlab.QuantizationSpec(8, 8), "zeroq", 8, 0, {"steps": 2}, images=small, any_images=True, held_out=8
    )
    report = run(job, tmp_path)
    assert SyntheticSet.load(tmp_path / "images.safetensors").images.shape[1:] == vgg.input.size
    assert any("f00df00df00d" in warning and "digits/vgg" in warning for warning in report.warnings)


def test_judges_without_real_data_are_of_another_seed_and_another_recipe(tmp_path: Path) -> None:
    job = Job(dfqlab.load_teacher("digits/vgg"), dfqlab.QuantizationSpec(4, 4), "zeroq", 8, 5, {"steps": 3}, held_out=8)
    report = run(job, tmp_path)
    assert [(j.judge, j.kind) for j in report.judgements] == [
        ("zeroq, seed 6", "held out"),
        ("dsg, seed 6", "held out"),
        ("zeroq, its own", "calibrated on"),
        ("clipped noise", "clipped noise"),
        ("BatchNorm's Gaussians", "BatchNorm"),
    ]
    own = next(row for row in report.rows if row.source == "zeroq")
    assert own.agreement == report.judgements[0].agreement
    # The same file in a second runtime.
    assert report.openvino is not None
    assert report.openvino.certificate is not None
    assert report.openvino.certificate.sentence.startswith("Holds: OpenVINO executes 4 of 4 convolutions")
    assert report.openvino.latency is not None
    assert "openvino" in report.versions


def test_without_held_out_images_and_without_real_ones_nobody_can_judge(tmp_path: Path) -> None:
    job = Job(dfqlab.load_teacher("digits/vgg"), dfqlab.QuantizationSpec(8, 8), "zeroq", 8, 0, held_out=0)
    with pytest.raises(DfqlabError, match="nothing to judge with"):
        run(job, tmp_path)


def test_a_recipe_without_images_has_one_row_and_shows_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    spec = dfqlab.QuantizationSpec(8, 8, equalization="dfq", calibration="bn")
    job = Job(dfqlab.load_teacher("digits/resnet"), spec, "dfq", 8, 0, {"steps": 3}, held_out=8)
    report = run(job, tmp_path)
    assert [row.source for row in report.rows] == ["dfq"]
    assert report.openvino is not None
    assert report.openvino.missing == 'OpenVINO is the extra "openvino": pip install "dfqlab[openvino]"'
    assert report.images is None
    assert not (tmp_path / "images.safetensors").exists()
    assert "no image was looked at" in (tmp_path / "report.html").read_text()


def test_a_rounding_that_learns_is_not_asked_of_noise_that_is_no_image() -> None:
    teacher = dfqlab.load_teacher("digits/vgg")
    images = SyntheticSet(torch.rand(8, 1, 16, 16), recipe="mixmix")
    of = {
        rounding: list(
            pipeline._sources(Job(teacher, dfqlab.QuantizationSpec(rounding=rounding), "mixmix", 8, 0), images, None)
        )
        for rounding in ("nearest", "brecq")
    }
    assert of == {"nearest": ["noise", "clipped noise", "mixmix"], "brecq": ["clipped noise", "mixmix"]}


def test_a_plan_that_another_version_wrote_is_told_as_it_stands() -> None:
    old = {"batch_size": 128, "dtype": "float32", "compiled": False, "note": ""}
    assert plan_in_words(old) == "batch_size 128, dtype float32, compiled False"
    assert plan_in_words({}) == ""
