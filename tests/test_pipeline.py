"""The promise of the embedded default, executed by onnxruntime: synthetic images calibrate as real ones do."""

import pytest

import dfqlab
from dfqlab.deployment import OnnxModel
from dfqlab.images import ImageSource, Noise, StoredImages, SyntheticSet
from dfqlab.measures import paired_difference
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
