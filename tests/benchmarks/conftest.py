"""Tables so small that they take seconds: four images, two steps, and models that are not quantized but imagined."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dfqlab
from benchmarks import image_sets, paper_table, sources
from benchmarks.image_sets import Size
from benchmarks.paper_table import PaperTable, Run
from benchmarks.zoo import Zoo
from dfqlab.recipes.names import RECIPES

TINY = Size("cpu", 4, dict.fromkeys(RECIPES, 2), every=False, to_learn=4, iterations=3)


@pytest.fixture(scope="session")
def digits() -> Zoo:
    """Networks of one BatchNorm layer in place of the embedded ones, and forty real digits."""
    data = dfqlab.load_data("digits")
    few = dfqlab.LabelledImages("forty digits", data.images[:40], data.labels[:40])
    networks = {name: untrained(name, channels) for name, channels in (("one", 2), ("two", 3), ("three", 4))}
    return Zoo("digits", networks, ("three", "two", "one"), ("one", "three"), ("one", "two"), (0, 1), few, few)


def untrained(name: str, channels: int) -> dfqlab.Teacher:
    """A network that nobody trained."""
    with torch.random.fork_rng():
        torch.manual_seed(channels)
        module = nn.Sequential(
            nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10),
        )  # fmt: skip
    return dfqlab.Teacher.from_module(module, size=(1, 16, 16), mean=[0.3], std=[0.4], classes=10, name=name)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that all of these tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def begin(
    tmp_path: Path, cache: Path, digits: Zoo, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, PaperTable], Run]:
    """A tiny run of a table, whose results lie in `tmp_path`."""
    monkeypatch.setattr(image_sets, "CACHE", cache)
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    monkeypatch.delenv("DFQLAB_BENCH_RESULTS", raising=False)
    monkeypatch.setattr(sources, "quantized_right", imagined)
    return lambda paper, name, table: paper_table.begin(paper, name, table, TINY, digits)


def imagined(
    teacher: dfqlab.Teacher,
    images: dfqlab.ImageSource,
    width: tuple[int, int],
    test: dfqlab.LabelledImages,
    rule: str,
    **more: object,
) -> Tensor:
    """Right answers by chance, the same for the same images; more of them with more bits."""
    pixels = next(iter(images.batches(4))).images
    generator = torch.Generator().manual_seed(int(1000 * float(pixels.abs().sum())) + len(rule))
    return (torch.rand(len(test), generator=generator) < 0.05 * sum(width)).double()
