"""Lesson 13 with a network of one's own in its first cell: those that follow run as they stand."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from torch import Tensor, nn

from dfqlab.data import LabelledImages
from dfqlab.teachers import Teacher, load_teacher

pytestmark = pytest.mark.traces

LESSON = nbformat.read(Path(__file__).parents[2] / "notebooks" / "13_deploy.ipynb", as_version=4)
OWN = "l13-teacher"  # the cell that a learner writes anew


class Fitting(nn.Module):
    """What torch.fx cannot follow: the size of what comes in decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 16:
            x = x[..., ::2]
        y: Tensor = self.conv(x)
        return y


def drawn(module: nn.Module) -> nn.Module:
    """The module with weights and biases of its own in every layer, as a trained one has them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
        parameter.data = (parameter.dim() == 1) * 0.5 + spread * torch.randn(parameter.shape, generator=generator)
    return module


def small_network(middle: nn.Module) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (3, 8, 8, 8, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(nn.Sequential(*layers), middle, nn.ReLU(), *head)


def run_lesson(teacher: Teacher, count: int, steps: int, until: str) -> dict[str, Any]:
    """The lesson's code from behind the cell that is a learner's own to another, and what it made."""
    pixels = torch.rand(8, *teacher.input.size, generator=torch.Generator().manual_seed(0))
    labelled = LabelledImages("own", pixels, teacher(pixels).argmax(1))
    made: dict[str, Any] = {"teacher": teacher, "judge": labelled, "real": labelled, "count": count, "steps": steps}
    ids = [cell.id for cell in LESSON.cells]
    exec("import dfqlab\nfrom dfqlab import lab", made)
    for cell in LESSON.cells[ids.index(OWN) + 1 : ids.index(until)]:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), made)
    return made


def test_it_runs_with_a_network_of_torchvision_whose_weights_are_a_file(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.save(drawn(models.resnet18(num_classes=7)).state_dict(), tmp_path / "own.pt")
    teacher = load_teacher("torchvision/resnet18", checkpoint=tmp_path / "own.pt")
    made = run_lesson(teacher, count=2, steps=1, until="l13-certificate")
    assert made["by_hand"].shape == (2, 64, 56, 56)
    assert made["by_hand"].equal(made["codes"].y)
    assert made["kinds"]["Conv"] == 20


def test_it_runs_with_any_module_and_a_part_that_cannot_be_traced() -> None:
    module = drawn(small_network(Fitting()))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    teacher = Teacher.from_module(module, size=(3, 12, 20), mean=mean, std=std, classes=5, leaves=["1"])
    made = run_lesson(teacher, count=8, steps=2, until="l13-widths")
    assert made["certificate"].integer_convolutions == made["certificate"].convolutions == 5
    assert ("1", "float") in [(row.name, row.bits) for row in made["model"].table if row.operation == "Fitting"]
