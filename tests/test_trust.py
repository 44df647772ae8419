"""Judges of a model: what each says, and when they contradict each other."""

import re
from dataclasses import replace

import pytest
import torch

import dfqlab
from dfqlab import trust
from dfqlab.compression.gaussians import ClippedNormal, sampled_inputs
from dfqlab.compression.insertion import prepare
from dfqlab.errors import DataError
from dfqlab.images import Noise, StoredImages
from dfqlab.measures import Interval, sqnr
from dfqlab.trust import Belief, Judgement, disagreements, judge, layer_errors

pytestmark = pytest.mark.traces


@pytest.fixture(scope="module")
def teacher() -> dfqlab.Teacher:
    return dfqlab.load_teacher("digits/mobilenet")


@pytest.fixture(scope="module")
def images(teacher: dfqlab.Teacher) -> StoredImages:
    return StoredImages(next(Noise(teacher.input, 40, seed=3, clipped=True).batches(40)).images)


@pytest.fixture
def model(teacher: dfqlab.Teacher, images: StoredImages) -> dfqlab.CompressedModel:
    return dfqlab.quantize(teacher, images, weights=4, activations=4, calibration="minmax")


def test_the_first_layer_loses_what_its_own_codes_lose(
    teacher: dfqlab.Teacher, images: StoredImages, model: dfqlab.CompressedModel
) -> None:
    found = layer_errors(model, prepare(teacher, model.spec), images)
    assert list(found) == list(model.layers)
    first = next(iter(found))
    batch_norm = teacher.module.get_submodule(teacher.batch_norms[0])
    convolution = teacher.module.get_submodule(first)
    x = teacher.input.normalize(images.images)
    reads = next(module for module in model.graph.modules() if type(module).__name__ == "Requantize")
    with torch.no_grad():
        expected = sqnr(batch_norm(convolution(x)), model.layers[first](reads(x)))
    assert found[first] == pytest.approx(expected, abs=1e-3)


def test_a_fault_shows_in_the_layer_that_has_it_and_in_no_other(
    teacher: dfqlab.Teacher, images: StoredImages, model: dfqlab.CompressedModel
) -> None:
    sources = {"noise": ("clipped noise", images)}
    before = judge(model, teacher, sources)
    path = list(model.layers)[3]
    model.layers[path].codes.copy_(model.layers[path].codes.flip(0))
    after = judge(model, teacher, sources)
    for one, other in zip(before, after, strict=True):
        worse = [p for p in one.layers if other.layers[p] < one.layers[p] - 1]
        same = [p for p in one.layers if other.layers[p] == one.layers[p]]
        assert worse == [path]
        assert len(same) == len(one.layers) - 1
        assert other.worst_layer == path
    assert after[0].agreement.value < before[0].agreement.value


def test_the_last_judge_has_no_images_and_asks_every_layer(
    teacher: dfqlab.Teacher, images: StoredImages, model: dfqlab.CompressedModel
) -> None:
    found = judge(model, teacher, {"noise": ("clipped noise", images)})
    assert [j.kind for j in found] == ["clipped noise", "BatchNorm"]
    assert found[1].agreement is None
    assert found[1].sqnr is None
    assert list(found[1].layers) == list(model.layers)
    assert judge(model, teacher, {"noise": ("clipped noise", images)}) == found


def test_draws_have_the_moments_that_are_known_in_closed_form() -> None:
    mean = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    normal = ClippedNormal.unclipped(mean, torch.ones_like(mean)).clipped(0.0, 2.5)
    drawn = normal.draw(200_000, torch.Generator().manual_seed(0))
    expected_mean, expected_variance = normal.moments()
    torch.testing.assert_close(drawn.mean(0), expected_mean[0], atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.var(0), expected_variance[0], atol=0.01, rtol=0)


def test_what_a_layer_is_fed_with_has_the_shape_of_what_it_reads(teacher: dfqlab.Teacher) -> None:
    prepared = prepare(teacher, dfqlab.QuantizationSpec())
    for path, x in sampled_inputs(prepared, 5, torch.Generator().manual_seed(0)):
        assert len(prepared.weights[path](x)) == 5


def test_a_judge_without_images_is_refused(teacher: dfqlab.Teacher, model: dfqlab.CompressedModel) -> None:
    with pytest.raises(DataError, match="no image"):
        judge(model, teacher, {"none": ("held out", Noise(teacher.input, 0, seed=0))})


def said(kind: trust.Kind, agreement: float | None, ratio: float | None, layer: float = 20.0) -> Judgement:
    share = None if agreement is None else Interval(agreement, agreement - 0.02, agreement + 0.02)
    return Judgement(f"images {kind}", kind, share, ratio, {"conv": layer, "fc": 25.0})


AGREED = (
    said("held out", 0.95, 19.0),
    said("held out", 0.94, 19.0),
    said("calibrated on", 0.95, 20.0),
    said("clipped noise", 0.90, 15.0),
    said("BatchNorm", None, None),
)


def test_judges_that_say_the_same_need_no_sentence() -> None:
    assert disagreements(AGREED) == ()


@pytest.mark.parametrize(
    ("index", "other", "sentence"),
    [
        (1, said("held out", 0.88, 19.0), "Believe the lower one"),
        (2, said("calibrated on", 0.95, 22.5), "flatters"),
        (3, said("clipped noise", 0.985, 15.0), "Noise praises"),
        (4, said("BatchNorm", None, None, layer=13.0), "conv has 20.0 dB .* 13.0 dB"),
    ],
)
def test_each_contradiction_is_told(index: int, other: Judgement, sentence: str) -> None:
    changed = (*AGREED[:index], other, *AGREED[index + 1 :])
    (found,) = disagreements(changed)
    assert re.search(sentence, found)


def test_an_estimate_that_does_not_rank_is_not_to_be_believed() -> None:
    belief = Belief("cifar10/resnet20", "W4A4", 24, Interval(0.7, 0.5, 0.9), 5000)
    assert "not to be believed" not in belief.sentence
    assert "0.70 [0.50, 0.90]" in belief.sentence
    assert "not to be believed" in replace(belief, correlation=Interval(0.49, 0.1, 0.8)).sentence
