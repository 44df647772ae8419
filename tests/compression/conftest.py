"""Teachers with weights and BatchNorm statistics that a generator of their own has drawn, and images for them."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dfqlab.compression import integers
from dfqlab.compression.calibration import calibrate
from dfqlab.compression.insertion import prepare
from dfqlab.compression.kinds import kind_of
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.prepared import PreparedNetwork
from dfqlab.compression.quantization import freeze
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.images import StoredImages
from dfqlab.teachers import Teacher

MakeTeacher = Callable[..., Teacher]


def settle(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep the size of what passes, running statistics away from those of a fresh layer."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            fan_in = child.weight[0].numel()
            child.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if child.bias is not None:
                child.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(child, BatchNorm):
            if child.running_mean is not None and child.running_var is not None:
                child.running_mean.normal_(0, 0.3, generator=generator)
                child.running_var.uniform_(0.5, 2, generator=generator)
            if child.weight is not None:
                child.weight.data.normal_(1, 0.3, generator=generator)
            if child.bias is not None:
                child.bias.data.normal_(0, 0.3, generator=generator)
    return module


@pytest.fixture(scope="session")
def make_teacher() -> MakeTeacher:
    """A teacher of a module: three channels, 8 by 8, five classes unless told otherwise."""

    def make(module: nn.Module, *, seed: int = 0, settled: bool = True, **changes: object) -> Teacher:
        arguments = {"size": (3, 8, 8), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "classes": 5, **changes}
        return Teacher.from_module(settle(module, seed) if settled else module, **arguments)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Sixteen images of valid pixels."""
    return torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def inputs_on_grids() -> Callable[[CompressedModel, Tensor], int]:
    """Runs a model and asserts that all that integer operations read stands on a grid; returns how many it saw."""

    class Checker(fx.Interpreter):
        checked = 0

        def run_node(self, n: fx.Node) -> object:
            if kind_of(n, self.module) in ("add", "cat", "average_pool") or self._module(n) in (
                integers.IntegerConv2d,
                integers.IntegerLinear,
                integers.GlobalAveragePool,
            ):
                for source in n.all_input_nodes:
                    x = self.env[source]
                    if not isinstance(x, Tensor):
                        continue
                    grid = self._grid(source)
                    codes = x.double() / grid.scale.double() + int(grid.zero_point)
                    assert (codes - codes.round()).abs().max() < 1e-4, n.format_node()
                    assert grid.quant_min <= codes.round().min(), n.format_node()
                    assert codes.round().max() <= grid.quant_max, n.format_node()
                    type(self).checked += 1
            return super().run_node(n)

        def _module(self, n: fx.Node) -> type[nn.Module] | None:
            return type(self.module.get_submodule(str(n.target))) if n.op == "call_module" else None

        def _grid(self, source: fx.Node) -> integers.Requantize:
            assert source.op == "call_module", f"{source.format_node()} is not quantized"
            module = self.module.get_submodule(str(source.target))
            assert isinstance(module, integers.Requantize), f"{source.format_node()} is not quantized"
            return module

    def check(model: CompressedModel, images: Tensor) -> int:
        Checker.checked = 0
        with torch.no_grad():
            Checker(model.graph).run(model.input.normalize(images))
        return Checker.checked

    return check


NETWORKS = (
    "resnet18",
    "mobilenet_v2",
    "shufflenet_v2_x0_5",
    "densenet121",
    "googlenet",
    "efficientnet_b0",
    "regnet_y_400mf",
    "timm/mobilenetv3_small_050",
)


@dataclass(frozen=True)
class Compressed:
    """A network of torchvision or timm at 32 by 32, prepared and quantized to 8 bits."""

    name: str
    teacher: Teacher
    prepared: PreparedNetwork
    model: CompressedModel
    images: Tensor


@pytest.fixture(scope="session", params=NETWORKS)
def compressed(request: pytest.FixtureRequest, make_teacher: MakeTeacher) -> Compressed:
    """Each network of the zoo, its weights drawn by a generator; whoever asks for it shall not change it."""
    import timm
    from torchvision import models

    name: str = request.param
    with torch.random.fork_rng(devices=[]):
        if name.startswith("timm/"):
            module = timm.create_model(name.removeprefix("timm/"), num_classes=10)
        else:
            extra = {"googlenet": {"aux_logits": False, "init_weights": False, "transform_input": True}}
            module = models.get_model(name, num_classes=10, **extra.get(name, {}))
    teacher = make_teacher(
        module, size=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=10, name=name
    )
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prepared = prepare(teacher, QuantizationSpec(calibration="minmax"))
    calibrate(prepared, StoredImages(images))
    return Compressed(name, teacher, prepared, freeze(prepared, provenance={}), images)
