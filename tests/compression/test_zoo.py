"""Networks that others wrote: folded and prepared they are themselves, quantized to 8 bits nearly so."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dfqlab.compression.model import CompressedModel
from dfqlab.measures import sqnr

OnGrids = Callable[[CompressedModel, Tensor], int]

# What has no integer kernel: gates and activations beyond ReLU, and googlenet's own normalisation of its input.
FLOAT = {
    "efficientnet_b0": {"SiLU": 49, "Sigmoid": 16, "mul": 16},
    "regnet_y_400mf": {"Sigmoid": 16, "mul": 16},
    "googlenet": {"mul": 3, "add": 3},
    "timm/mobilenetv3_small_050": {"Hardswish": 19, "Hardsigmoid": 9, "mul": 9, "linear": 1},
}


def test_the_prepared_network_is_the_teachers(compressed: Any) -> None:
    expected = compressed.teacher(compressed.images)
    found = compressed.prepared.graph(compressed.teacher.input.normalize(compressed.images))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert expected.std() > 1e-2 * expected.abs().max()


def test_every_norm_is_folded_and_its_gaussian_kept(compressed: Any) -> None:
    assert not any(isinstance(module, BatchNorm) for module in compressed.prepared.graph.modules())
    assert len(compressed.prepared.gaussians) == len(compressed.teacher.batch_norms)


def test_every_layer_is_an_integer_layer(compressed: Any) -> None:
    reached = {path for path, m in compressed.teacher.module.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    assert reached <= set(compressed.model.layers)
    assert not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in compressed.model.graph.modules())


def test_only_what_no_integer_kernel_is_known_for_stays_float(compressed: Any) -> None:
    found = Counter(row.operation for row in compressed.model.table if row.bits == "float")
    assert found == FLOAT.get(compressed.name, {})


def test_what_integer_operations_read_is_on_a_grid(compressed: Any, inputs_on_grids: OnGrids) -> None:
    assert inputs_on_grids(compressed.model, compressed.images) > len(compressed.model.layers)


def test_at_eight_bits_the_model_is_close_to_the_teacher(compressed: Any) -> None:
    assert sqnr(compressed.teacher(compressed.images), compressed.model(compressed.images)) > 15


def test_the_teacher_is_not_changed(compressed: Any) -> None:
    again = type(compressed.teacher).from_module(
        compressed.teacher.module,
        size=compressed.teacher.input.size,
        mean=compressed.teacher.input.mean,
        std=compressed.teacher.input.std,
        classes=10,
    )
    assert again.fingerprint == compressed.teacher.fingerprint
    assert torch.isfinite(compressed.teacher(compressed.images)).all()
