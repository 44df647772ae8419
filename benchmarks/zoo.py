"""The networks that the papers' tables are made on, and real images to judge with."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import dfqlab
from dfqlab.images import Noise, StoredImages

ZOOS = ("digits", "cifar10")


@dataclass(frozen=True)
class Zoo:
    """Networks of one task.

    Attributes:
        name: "digits" or "cifar10".
        networks: all of them, by their short names.
        held_out: whom nothing is made from: each in turn where there are several; the first where a table has one.
        targets: the two that are quantized where there is time for two: one that images are made from, one held out.
        pair: the two that tables take which have no held-out network, where there is time for two.
        seeds: of the images.
        test, train: real images to judge with, and to calibrate the rows that say "real".
    """

    name: str
    networks: dict[str, dfqlab.Teacher]
    held_out: tuple[str, ...]
    targets: tuple[str, str]
    pair: tuple[str, str]
    seeds: tuple[int, ...]
    test: dfqlab.LabelledImages
    train: dfqlab.LabelledImages

    def without(self, held_out: str) -> tuple[str, ...]:
        """The names of all others."""
        return tuple(name for name in self.networks if name != held_out)

    def of(self, names: tuple[str, ...]) -> list[dfqlab.Teacher]:
        """Networks by their names."""
        return [self.networks[name] for name in names]

    def noise(self, count: int, seed: int, *, clipped: bool) -> Noise:
        """What one has without any method."""
        return Noise(next(iter(self.networks.values())).input, count, seed, clipped=clipped)


def load(name: str, device: str = "cpu") -> Zoo:
    """A zoo by its name."""
    if name == "digits":
        names = ("resnet", "mobilenet", "vgg")
        return Zoo(
            name,
            {network: dfqlab.load_teacher(f"digits/{network}", device=device) for network in names},
            held_out=("mobilenet", "resnet", "vgg"),
            targets=("resnet", "mobilenet"),
            pair=("mobilenet", "resnet"),
            seeds=(0, 1, 2),
            test=dfqlab.load_data("digits"),
            train=dfqlab.load_data("digits", split="train"),
        )
    if "DFQLAB_DATA" not in os.environ:
        sys.exit("DFQLAB_DATA is not set: it names the folder that holds cifar10/")
    folder = Path(os.environ["DFQLAB_DATA"]) / "cifar10"
    names = ("resnet20", "vgg11_bn", "mobilenet_v2", "shufflenet_v2")
    return Zoo(
        name,
        {
            network: dfqlab.load_teacher(
                f"cifar10/{network}", checkpoint=folder / f"{network}.safetensors", device=device
            )
            for network in names
        },
        held_out=("shufflenet_v2",),
        targets=("mobilenet_v2", "shufflenet_v2"),
        pair=("resnet20", "vgg11_bn"),  # those of DSG's Table 2
        seeds=(0,),
        test=dfqlab.load_data(folder / "test.npz"),
        train=dfqlab.load_data(folder / "train-5000.npz"),
    )


def drawn(data: dfqlab.LabelledImages, count: int, seed: int) -> StoredImages:
    """Real images and their classes, drawn at random: `count`, or all if there are fewer."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    return StoredImages(data.images[order], data.labels[order])
