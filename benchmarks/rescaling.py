"""A network that computes what it did, with channels that differ in scale: what equalization is for."""

import copy

import torch
from torch import nn

import dfqlab

OCTAVES = 4.0


def with_relu(teacher: dfqlab.Teacher) -> dfqlab.Teacher:
    """ReLU in place of ReLU6: a channel can only be scaled behind a function that scales with it."""
    module = copy.deepcopy(teacher.module)
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU())
    return _like(teacher, module)


def rescaled(teacher: dfqlab.Teacher, seed: int = 0) -> dfqlab.Teacher:
    """Each channel between two convolutions of a block multiplied by 2^U(-4, 4), and divided by it where it is read.

    Args:
        teacher: with ReLU between convolutions in a row.
        seed: of the factors.
    """
    module, generator = copy.deepcopy(teacher.module), torch.Generator().manual_seed(seed)
    for norm, reader in _neighbours(module).items():
        factors = 2 ** (OCTAVES * (2 * torch.rand(norm.num_features, generator=generator) - 1))
        norm.weight.data *= factors
        norm.bias.data *= factors
        read = factors.reshape(-1, 1, 1, 1) if reader.groups > 1 else factors.reshape(1, -1, 1, 1)
        reader.weight.data /= read
    return _like(teacher, module)


def _neighbours(module: nn.Module) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    """BatchNorm layers whose channels, behind a ReLU, nothing reads but one convolution: dense, or depthwise."""
    found = {}
    for sequence in module.modules():
        if isinstance(sequence, nn.Sequential):
            row = [part for child in sequence for part in _in_a_row(child)]
            for norm, function, reader in zip(row, row[1:], row[2:], strict=False):
                if isinstance(norm, nn.BatchNorm2d) and isinstance(function, nn.ReLU) and isinstance(reader, nn.Conv2d):
                    found[norm] = reader
    return found


def _in_a_row(child: nn.Module) -> list[nn.Module]:
    """A layer, or those of a sequence of layers; what computes otherwise is one that is not looked into."""
    if isinstance(child, nn.Sequential):
        return [part for inner in child for part in _in_a_row(inner)]
    return [child]


def _like(teacher: dfqlab.Teacher, module: nn.Module) -> dfqlab.Teacher:
    spec = teacher.input
    return dfqlab.Teacher.from_module(
        module, size=spec.size, mean=spec.mean, std=spec.std, classes=teacher.classes, name=teacher.name
    )
