"""Lesson 13 with a network of one's own in its first cell: those that follow run as they stand."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dfqlab.data import LabelledImages
from dfqlab.teachers import Teacher

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


def run_lesson(made: dict[str, Any], until: str | None = None) -> dict[str, Any]:
    """The lesson's code from behind the cell that is a learner's own to another, or to its end, and what it made."""
    ids = [cell.id for cell in LESSON.cells]
    exec("import dfqlab\nfrom dfqlab import lab", made)
    for cell in LESSON.cells[ids.index(OWN) + 1 : until and ids.index(until)]:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), made)
    return made


def image_folder(folder: Path) -> Path:
    """Two images of one colour for each of two classes."""
    for label in ("first", "second"):
        (folder / label).mkdir(parents=True)
        for shade in (60, 200):
            Image.new("RGB", (40, 30), (shade, 90, 30)).save(folder / label / f"{shade}.png")
    return folder


def test_the_lines_that_the_lesson_gives_take_a_network_of_torchvision_and_two_folders(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.save(drawn(models.resnet18(num_classes=2)).state_dict(), tmp_path / "own.pt")
    (told,) = (cell.source for cell in LESSON.cells if cell.id == "l13-which")
    (lines,) = re.findall(r"```python\n(.*?)```", told, re.DOTALL)
    (first_line,) = re.findall(r"your weights \| `(.*?)`", told)
    made: dict[str, Any] = {"PATH": tmp_path / "own.pt"} | {
        name: image_folder(tmp_path / name) for name in ("FOLDER", "OTHER_FOLDER")
    }
    exec(re.sub(r"(?m)^teacher = .*$", f"import dfqlab\nteacher = {first_line}", lines), made)
    assert (made["count"], made["steps"]) == (8, 20)
    assert len(made["judge"]) == len(made["real"]) == 4

    made |= {"count": 2, "steps": 1}
    made = run_lesson(made, until="l13-plant")
    assert made["by_hand"].shape == (2, 64, 56, 56)
    assert made["by_hand"].equal(made["codes"].y)
    assert made["kinds"]["Conv"] == made["certificate"].integer_convolutions == 20


def test_it_runs_to_its_end_with_any_module_and_a_part_that_cannot_be_traced_and_no_real_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfqlab.deployment.certificate.ENOUGH_SQNR", float("inf"))  # so that no certificate holds
    module = drawn(small_network(Fitting()))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    teacher = Teacher.from_module(module, size=(3, 12, 20), mean=mean, std=std, classes=5, leaves=["1"])
    pixels = torch.rand(8, *teacher.input.size, generator=torch.Generator().manual_seed(0))
    judge = LabelledImages("own", pixels, teacher(pixels).argmax(1))
    made = run_lesson({"teacher": teacher, "judge": judge, "real": None, "count": 8, "steps": 2})
    assert made["certificate"].integer_convolutions == made["certificate"].convolutions == 5
    assert ("1", "float") in [(row.name, row.bits) for row in made["model"].table if row.operation == "Fitting"]
    assert list(made["rows"]) == ["noise W4A4", "clipped noise W4A4", "zeroq W4A4"]
    # A certificate that does not hold stops nothing, and its reasons are told.
    certificates, told = [it.certificate for it in made["by_width"].values()], capsys.readouterr().out
    assert not any(certificate.holds for certificate in certificates)
    assert all(reason in told for certificate in certificates for reason in certificate.failures)
