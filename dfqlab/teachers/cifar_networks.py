"""The CIFAR-10 networks of the course: four families that a quantizer treats differently.

All take normalised RGB images (n, 3, 32, 32) and return logits (n, 10); torch.fx traces every one of them.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqlab.errors import ConfigurationError

CIFAR10_SIZE = (3, 32, 32)
CIFAR10_MEAN = (0.485, 0.456, 0.406)
CIFAR10_STD = (0.229, 0.224, 0.225)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2015, section 4.2), its shortcuts without parameters (option A).

    A 3x3 convolution to 16 channels, then three layers of three basic blocks at 16, 32 and 64 channels, the first block
    of the second and third layer with stride 2; global average pooling; a linear layer. A shortcut that halves the
    resolution takes every second pixel and fills the new channels with zeros, half of them on either side.
    269,722 parameters, 19 BatchNorm layers.
    """
    return _ResNet20()


def vgg11_bn() -> nn.Module:
    """VGG-11 with BatchNorm at half width for 32x32 images: eight plain convolutions, one linear layer.

    torchvision's `make_layers([32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M"], batch_norm=True)` as
    `features`, which leaves one pixel of 256 channels; flattened; `classifier`, a linear layer 256 to 10.
    2,311,562 parameters, 8 BatchNorm layers.

    Raises:
        ConfigurationError: torchvision is not installed.
    """
    return _VGG()


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 at half width for 32x32 images: depthwise convolutions, linear bottlenecks, ReLU6.

    torchvision's `mobilenet_v2(num_classes=10, width_mult=0.5, dropout=0.0)` with `features[0][0].stride = (1, 1)`, so
    that the first convolution keeps the resolution. 700,490 parameters, 52 BatchNorm layers.

    Raises:
        ConfigurationError: torchvision is not installed.
    """
    network: nn.Module = zoo("torchvision.models").mobilenet_v2(num_classes=10, width_mult=0.5, dropout=0.0)
    cast(nn.Conv2d, network.get_submodule("features.0.0")).stride = (1, 1)
    return network


def shufflenet_v2() -> nn.Module:
    """ShuffleNetV2 x0.5 for 32x32 images: channels split, concatenated and shuffled.

    torchvision's `shufflenet_v2_x0_5(num_classes=10)` with `conv1[0].stride = (1, 1)` and `maxpool` an identity, so
    that the first two steps keep the resolution. 352,042 parameters, 56 BatchNorm layers.

    Raises:
        ConfigurationError: torchvision is not installed.
    """
    network: nn.Module = zoo("torchvision.models").shufflenet_v2_x0_5(num_classes=10)
    cast(nn.Conv2d, network.get_submodule("conv1.0")).stride = (1, 1)
    network.maxpool = nn.Identity()
    return network


CIFAR10_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "vgg11_bn": vgg11_bn,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v2": shufflenet_v2,
}


def zoo(library: str) -> Any:
    """An optional library that builds networks, or a ConfigurationError that says how to install it."""
    try:
        return import_module(library)
    except ImportError as error:
        package = library.partition(".")[0]
        raise ConfigurationError(f'this teacher is built by {package}; pip install "dfqlab[zoo]"') from error


class _ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(_BasicBlock(16, 16), _BasicBlock(16, 16), _BasicBlock(16, 16))
        self.layer2 = nn.Sequential(_BasicBlock(16, 32, stride=2), _BasicBlock(32, 32), _BasicBlock(32, 32))
        self.layer3 = nn.Sequential(_BasicBlock(32, 64, stride=2), _BasicBlock(64, 64), _BasicBlock(64, 64))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Identity() if stride == 1 else _OptionA(channels_out - channels_in)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.relu2(out + self.shortcut(x))
        return out


class _OptionA(nn.Module):
    """Shortcut A of He et al. 2015, section 3.3: half the resolution, more channels, no parameters."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        padded: Tensor = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))
        return padded


class _VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M"]
        self.features = zoo("torchvision.models.vgg").make_layers(layers, batch_norm=True)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits
