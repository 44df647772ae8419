"""Squared gradients: those of a float64 network written out by hand, and what becomes of a rounding that reads them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqlab.compression import reconstruction
from dfqlab.compression.blocks import find_units
from dfqlab.compression.calibration import calibrate
from dfqlab.compression.execution import log_shares, simulation
from dfqlab.compression.fisher import squared_gradients
from dfqlab.compression.insertion import prepare
from dfqlab.compression.learning import Rows, squared_error
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantization import quantize
from dfqlab.compression.rounding import nearest
from dfqlab.compression.spec import QuantizationSpec, Reconstruction
from dfqlab.images import StoredImages
from dfqlab.progress import Step
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]
LEARNED = ("adaround", "brecq", "qdrop")


class TwoBlocks(nn.Module):
    """A residual block, and a linear layer behind its average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.inner(x).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture
def prepared(make_teacher: MakeTeacher, images: Tensor) -> PreparedNetwork:
    return calibrated(prepare(make_teacher(TwoBlocks()), QuantizationSpec(3, 4, rounding="brecq")), images)


def calibrated(prepared: PreparedNetwork, images: Tensor) -> PreparedNetwork:
    calibrate(prepared, StoredImages(images))
    return prepared


def at_one_pixel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("nchw,oc->nohw", x, weight.flatten(1)) + bias[:, None, None]


@pytest.mark.parametrize("quantized", [False, True])
def test_they_are_those_of_the_divergence_in_float64(
    prepared: PreparedNetwork, images: Tensor, quantized: bool
) -> None:
    """Of the block, and of the head, whose own gradient is the difference of the shares."""
    _, block, head = find_units(prepared, "block")
    own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
    bias = {path: layer.bias.detach().double() for path, layer in prepared.weights.items()}
    rounded = {path: layer.weight for path, layer in nearest(prepared).items()}
    exact, w = ({path: weight.double() for path, weight in some.items()} for some in (own, rounded))
    by_name = {quantizer.name: quantizer for quantizer in prepared.activations.values()}

    def pretend(name: str, x: Tensor) -> Tensor:
        return by_name[name].simulate(x.float()).double() if quantized else x

    x = prepared.teacher.input.normalize(images)
    z = at_one_pixel(pretend("input", x.double()), w["stem"], bias["stem"]).relu()
    z = pretend("stem", z)
    leaves = pretend("add", z + pretend("inner", at_one_pixel(z, w["inner"], bias["inner"]).relu())).requires_grad_()
    answers = log_shares(prepared, x, own)
    logits = leaves.mean((2, 3)) @ exact["head"].T + bias["head"]
    divergence = (answers.exp() * (answers - logits.log_softmax(1))).sum()
    expected = torch.autograd.grad(divergence, leaves)[0].square()

    def found(unit: Any, entry: Tensor) -> Tensor:
        parts = [{unit.entry: part.float()} for part in entry.split(10)]
        how = simulation(prepared) if quantized else None
        return torch.cat(squared_gradients(prepared, unit, parts, answers.split(10), rounded, how).parts).double()

    of_block = found(block, z.detach())
    assert float(of_block.mean()) == pytest.approx(1, rel=1e-5)
    assert torch.allclose(of_block, expected / expected.mean(), rtol=1e-3, atol=1e-4)

    average = leaves.detach().mean((2, 3), keepdim=True)
    logits = average.flatten(1) @ w["head"].T + bias["head"]
    differences = (logits.softmax(1) - answers.exp()).square()
    of_head = found(head, average)
    assert torch.allclose(of_head, differences / differences.mean(), rtol=1e-3, atol=1e-4)


def test_where_nothing_was_rounded_all_values_count_alike(prepared: PreparedNetwork, images: Tensor) -> None:
    *_, head = find_units(prepared, "block")
    own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
    entry = torch.rand(16, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    answers = prepared.weights["head"](entry.flatten(1)).detach().double().log_softmax(1)
    found = squared_gradients(prepared, head, [{head.entry: entry}], [answers], own, None)
    assert torch.equal(found.parts[0], torch.ones(16, 5))


def test_the_unit_of_a_value_does_not_decide_whether_it_is_weighed(make_teacher: MakeTeacher, images: Tensor) -> None:
    """The same function with values behind the first layer 4096 times as large has the same weights."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    make_teacher(module)  # which settles it
    found = []
    for factor in (1.0, 4096.0):
        with torch.no_grad():
            module[0].weight *= factor
            module[0].bias *= factor
            module[2].weight /= factor
        prepared = prepare(make_teacher(module, settled=False), QuantizationSpec(8, 8, rounding="brecq"))
        unit, *_ = find_units(prepared, "block")
        own = {path: layer.weight.detach() for path, layer in prepared.weights.items()}
        rounded = {path: layer.weight for path, layer in nearest(calibrated(prepared, images)).items()}
        x = prepared.teacher.input.normalize(images)
        answers = [log_shares(prepared, x, own)]
        found.append(squared_gradients(prepared, unit, [{unit.entry: x}], answers, rounded, None).parts[0])
    assert float(found[0].std()) > 0.1
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 7, 3), (4, 3)])
def test_errors_are_weighed_one_by_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    found, target, importance = (torch.rand(shape, generator=generator) for _ in range(3))
    expected = ((found - target).square() * importance).double().sum(1 if len(shape) == 4 else -1).mean()
    assert float(squared_error(found, target, importance)) == pytest.approx(float(expected), rel=1e-5)


def learned(teacher: Teacher, images: Tensor, rounding: str, loss: Any) -> tuple[list[Tensor], list[float]]:
    """The codes, and the errors on the way."""
    told: list[Step] = []
    model = quantize(
        teacher, images, weights=3, activations=4, rounding=rounding, on_step=told.append,
        reconstruction=Reconstruction(iterations=20, batch=8, loss=loss),
    )  # fmt: skip
    errors = [step.values["error"] for step in told if step.job.startswith("round")]
    return [layer.codes for layer in model.layers.values()], errors


@pytest.mark.parametrize("rounding", LEARNED)
def test_weights_that_are_all_one_change_nothing_and_others_do(
    make_teacher: MakeTeacher, images: Tensor, rounding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_teacher(TwoBlocks())
    (squared, errors), (_, weighed) = (learned(teacher, images, rounding, loss) for loss in ("squared", "fisher"))
    assert weighed != pytest.approx(errors, rel=0.1)

    def ones(*arguments: Any) -> Rows:
        return Rows([torch.ones_like(part) for part in squared_gradients(*arguments).parts])

    monkeypatch.setattr(reconstruction, "squared_gradients", ones)
    codes, alike = learned(teacher, images, rounding, "fisher")
    assert alike == pytest.approx(errors, rel=1e-3)
    assert all(map(torch.equal, codes, squared))
