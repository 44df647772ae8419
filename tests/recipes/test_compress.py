"""A paper from the network to integers, beside the same put together by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import Reconstruction
from dfqlab.errors import ConfigurationError, QuantizationError, TeacherError
from dfqlab.images import Noise
from dfqlab.progress import Cancelled, Step
from dfqlab.recipes import compress, synthesize
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]

FAST = Reconstruction(iterations=4, batch=4)
PAPERS: dict[str, dict[str, Any]] = {
    "zeroq": {"calibration": "minmax"},
    "dsg": {"calibration": "mse"},
    "mixmix": {"calibration": "mse", "rounding": "brecq", "ends": 8, "reconstruction": FAST},
}


@pytest.mark.parametrize("recipe", PAPERS)
def test_a_paper_is_its_images_and_what_it_does_with_them(recipe: str, make_teacher: MakeTeacher) -> None:
    teacher = make_teacher()
    how = {"reconstruction": FAST}
    model = compress(teacher, recipe, weights=4, activations=4, count=6, seed=1, steps=2, quantization=how)
    images = synthesize(teacher, recipe, count=6, seed=1, steps=2)
    expected = quantize(
        teacher, images, weights=4, activations=4, **PAPERS[recipe], **({} if recipe == "mixmix" else how)
    )
    x = torch.rand(5, *teacher.input.size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), expected(x))
    assert model.spec == expected.spec


def test_dfq_wants_no_images(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher()
    spec = compress(teacher, "dfq", weights=8, activations=8).spec
    assert (spec.equalization, spec.calibration, spec.corrects) == ("dfq", "bn", "analytic")
    assert spec.granularity == "per_tensor"


def test_images_may_be_given_and_what_a_paper_does_be_changed(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher()
    noise = Noise(teacher.input, 6, 0)
    model = compress(teacher, "mixmix", images=noise, quantization={"rounding": "nearest", "ends": None})
    assert (model.spec.rounding, model.spec.ends) == ("nearest", None)


@pytest.mark.parametrize(
    ("quantization", "error"),
    [({"mean_bits": 2, "ends": 8}, QuantizationError), ({"ruonding": "nearest"}, ConfigurationError)],
)
def test_what_cannot_be_done_is_refused_before_images_are_made(
    quantization: dict[str, Any], error: type[Exception], make_teacher: MakeTeacher
) -> None:
    def nothing(step: Step) -> None:
        raise AssertionError("images are made")

    with pytest.raises(error):
        compress(make_teacher(), "mixmix", count=4, steps=2, quantization=quantization, on_step=nothing)


def test_a_recipe_that_only_makes_images_says_so(make_teacher: MakeTeacher) -> None:
    teacher = make_teacher()
    with pytest.raises(ConfigurationError, match="makes images alone"):
        compress(teacher, "deepinversion")
    with pytest.raises(ConfigurationError, match="unknown recipe 'dqf'; did you mean 'dfq'"):
        compress(teacher, "dqf")
    with pytest.raises(ConfigurationError, match="no setting 'stpes'"):
        compress(teacher, "zeroq", stpes=3)


def test_half_made_images_compress_nothing(make_teacher: MakeTeacher) -> None:
    def stop(step: Step) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        compress(make_teacher(), "zeroq", count=4, steps=9, on_step=stop)
    with pytest.raises(TeacherError, match="nothing to compress"):
        compress([], "dfq")
