"""What the BatchNorm layers of known networks read, and the weights of two of them: written down, not built."""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LayerSet:
    """The inputs of all BatchNorm layers of a network, in forward order.

    Attributes:
        name: of the network.
        activation: what follows BatchNorm; taken for every layer, though a few have none.
        text: `channels@side`, times how many in a row.
    """

    name: str
    activation: Literal["relu", "relu6"]
    text: str

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(channels, side) of each layer.

        >>> LayerSet("two and one", "relu", "64@7*2 8@3").layers
        [(64, 7), (64, 7), (8, 3)]
        """
        runs = re.findall(r"(\d+)@(\d+)(?:\*(\d+))?", self.text)
        return [(int(channels), int(side)) for channels, side, times in runs for _ in range(int(times or 1))]

    @property
    def channels(self) -> list[int]:
        """Channels of each layer."""
        return [channels for channels, _ in self.layers]

    def elements(self, batch: int) -> int:
        """Elements that all layers read of a batch."""
        return batch * sum(channels * side * side for channels, side in self.layers)


# torchvision's networks at 224x224, and ResNet-20 for CIFAR-10 at 32x32.
LAYER_SETS = {
    "resnet18": LayerSet("ResNet-18", "relu", "64@112 64@56*4 128@28*5 256@14*5 512@7*5"),
    "resnet50": LayerSet(
        "ResNet-50",
        "relu",
        "64@112 64@56*2 256@56*2 64@56*2 256@56 64@56*2 256@56 128@56 128@28 512@28*2 128@28*2 512@28 128@28*2 512@28 "
        "128@28*2 512@28 256@28 256@14 1024@14*2 256@14*2 1024@14 256@14*2 1024@14 256@14*2 1024@14 256@14*2 1024@14 "
        "256@14*2 1024@14 512@14 512@7 2048@7*2 512@7*2 2048@7 512@7*2 2048@7",
    ),
    "mobilenet_v2": LayerSet(
        "MobileNetV2",
        "relu6",
        "32@112*2 16@112 96@112 96@56 24@56 144@56*2 24@56 144@56 144@28 32@28 192@28*2 32@28 192@28*2 32@28 192@28 "
        "192@14 64@14 384@14*2 64@14 384@14*2 64@14 384@14*2 64@14 384@14*2 96@14 576@14*2 96@14 576@14*2 96@14 576@14 "
        "576@7 160@7 960@7*2 160@7 960@7*2 160@7 960@7*2 320@7 1280@7",
    ),
    "resnet20": LayerSet("ResNet-20", "relu", "16@32*7 32@16*6 64@8*6"),
}


def weights(network: Literal["resnet18", "resnet20"]) -> list[tuple[int, ...]]:
    """Shapes of all weights that are quantized: convolutions and the linear layer."""
    if network == "resnet20":
        return [
            (16, 3, 3, 3), *[(16, 16, 3, 3)] * 6, (32, 16, 3, 3), *[(32, 32, 3, 3)] * 5,
            (64, 32, 3, 3), *[(64, 64, 3, 3)] * 5, (10, 64),
        ]  # fmt: skip
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), *[(64, 64, 3, 3)] * 4]
    for c in (128, 256, 512):
        shapes += [(c, c // 2, 3, 3), (c, c, 3, 3), (c, c // 2, 1, 1), *[(c, c, 3, 3)] * 2]
    return [*shapes, (1000, 512)]
