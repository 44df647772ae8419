"""What images are worth to a network that is quantized with them."""

import pytest
import torch

import dfqlab
from benchmarks import accuracy
from benchmarks.zoo import Zoo, drawn


def test_the_width_is_the_one_at_which_real_images_gain_most() -> None:
    found = {"real": {(4, 4): 0.9, (8, 3): 0.8, (4, 3): 0.7, (3, 3): 0.3}}
    found["clipped noise"] = {(4, 4): 0.85, (8, 3): 0.6, (4, 3): 0.6, (3, 3): 0.0}
    assert accuracy.separating_width(lambda source, width: found[source][width], floor=0.5) == (8, 3)
    assert accuracy.separating_width(lambda source, width: found[source][width], floor=0.2) == (3, 3)
    assert accuracy.separating_width(lambda source, width: found[source][width], floor=1.0) == (4, 4)


def test_seeds_are_averaged_before_images_are_paired() -> None:
    right = {
        "a": [torch.tensor([1.0, 0, 1, 1]).double(), torch.tensor([1.0, 1, 1, 0]).double()],
        "b": [torch.zeros(4).double()] * 2,
    }
    found = accuracy.mean_difference(right, "a", "b")
    assert found["value"] == pytest.approx(0.75)
    assert accuracy.summary(right["a"])["by_seed"] == [0.75, 0.75]
    spread = 1.959963984540054 * float(torch.tensor([1.0, 0.5, 1, 0.5]).std()) / 2
    assert found["high"] - found["value"] == pytest.approx(spread)


def test_onnxruntime_executes_a_quantized_network(digits: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[type] = []
    monkeypatch.setattr(accuracy, "right", lambda model, test: asked.append(type(model)) or torch.ones(1))
    accuracy.quantized_right(digits.networks["one"], drawn(digits.train, 8, 0), (8, 8), digits.test, "minmax")
    assert asked == [dfqlab.deployment.OnnxModel]


def test_real_images_are_drawn_with_their_classes(digits: Zoo) -> None:
    few, many = drawn(digits.test, 20, seed=3), drawn(digits.test, 5000, seed=3)
    assert (len(few), len(many)) == (20, len(digits.test))
    assert few.images.equal(many.images[:20])
    data = dfqlab.LabelledImages("drawn", few.images, few.labels)
    assert float(accuracy.right(dfqlab.load_teacher("digits/vgg"), data).mean()) > 0.9
