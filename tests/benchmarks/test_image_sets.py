"""Images of tables are made once."""

import json
from pathlib import Path

import pytest

from benchmarks import image_sets
from benchmarks.image_sets import SIZES, ImageSets, Size
from benchmarks.zoo import Zoo
from dfqlab.progress import Step

SMALL = Size("small", 4, {"zeroq": 2}, every=False)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every step that is taken, by its description."""
    steps: list[str] = []

    def told(what: str):
        def tell(step: Step) -> None:
            steps.append(what)

        return tell

    monkeypatch.setattr(image_sets, "_told", told)
    return steps


def test_a_set_that_is_there_is_read_and_not_made_again(tmp_path: Path, digits: Zoo, counted: list[str]) -> None:
    sets = [ImageSets(SMALL, tmp_path) for _ in range(2)]
    first, again, other = (of.get("zeroq", digits.of(("one",)), 0) for of in (sets[0], sets[0], sets[1]))
    assert first is again
    assert first.images.equal(other.images)
    assert len(counted) == 2
    assert sets[1].seconds.keys() == sets[0].seconds.keys()
    assert len(sets[0].seconds) == 1


def test_what_makes_other_images_makes_another_set(tmp_path: Path, digits: Zoo, counted: list[str]) -> None:
    sets, one = ImageSets(SMALL, tmp_path), digits.of(("one",))
    sets.get("zeroq", one, 0)
    sets.get("zeroq", one, 1)
    sets.get("zeroq", digits.of(("two",)), 0)
    sets.get("zeroq", one, 0, learning_rate=0.1)
    ImageSets(Size("larger", 5, {"zeroq": 2}, every=False), tmp_path).get("zeroq", one, 0)
    ImageSets(Size("longer", 4, {"zeroq": 3}, every=False), tmp_path).get("zeroq", one, 0)
    assert len(list(tmp_path.iterdir())) == 6
    assert len(counted) == 13


def test_a_setting_that_is_named_as_it_is_by_default_changes_nothing(tmp_path: Path, digits: Zoo) -> None:
    sets, one = ImageSets(SMALL, tmp_path), digits.of(("one",))
    assert sets.get("zeroq", one, 0) is sets.get("zeroq", one, 0, learning_rate=0.5)


def test_a_set_that_was_interrupted_goes_on(tmp_path: Path, digits: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def stop(step: Step) -> None:
        steps.append(step.index)
        if step.index == 3:  # the first of the second batch
            raise KeyboardInterrupt

    monkeypatch.setattr(image_sets, "_told", lambda what: stop)
    size = Size("two batches", 129, {"zeroq": 2}, every=False)
    one = digits.of(("one",))
    with pytest.raises(KeyboardInterrupt):
        ImageSets(size, tmp_path).get("zeroq", one, 0)
    (folder,) = tmp_path.iterdir()
    cost = json.loads((folder / image_sets.COST).read_text())["cpu_seconds"]
    monkeypatch.setattr(image_sets, "_told", lambda what: lambda step: steps.append(step.index))
    sets = ImageSets(size, tmp_path)
    assert len(sets.get("zeroq", one, 0)) == 129
    assert steps.count(2) == 1, "the first batch was made twice"
    assert sets.seconds[folder.name] > cost


def test_the_sizes_are_those_of_the_papers() -> None:
    assert (SIZES["cpu"].count, set(SIZES["cpu"].steps.values())) == (128, {500})
    full = SIZES["full"]
    assert (full.count, full.steps["mixmix"], full.steps["zeroq"], full.steps["dsg"]) == (1024, 5000, 500, 500)
