"""Networks and real images of the papers' tables."""

from pathlib import Path

import pytest

from benchmarks import sources, zoo
from benchmarks.zoo import Zoo


def check(networks: Zoo) -> None:
    names = set(networks.networks)
    assert {*networks.held_out, *networks.targets, *networks.pair} <= names
    first = networks.held_out[0]
    assert first in networks.targets
    assert set(networks.targets) - {first} <= set(networks.without(first)), "one target is in the zoo"
    assert sources.CHOOSING_SEED not in networks.seeds, "no reported seed chooses a width"
    assert len({teacher.classes for teacher in networks.networks.values()}) == 1


def test_of_the_embedded_networks_each_is_held_out_once() -> None:
    networks = zoo.load("digits")
    check(networks)
    assert sorted(networks.held_out) == sorted(networks.networks)
    assert len(networks.seeds) == 3


def test_on_cifar10_three_networks_are_a_zoo_and_one_is_held_out(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFQLAB_DATA", str(data_dir))
    networks = zoo.load("cifar10")
    check(networks)
    assert len(networks.without("shufflenet_v2")) == 3
    assert len(networks.seeds) == 1


def test_without_real_data_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFQLAB_DATA", raising=False)
    with pytest.raises(SystemExit, match="DFQLAB_DATA is not set"):
        zoo.load("cifar10")
