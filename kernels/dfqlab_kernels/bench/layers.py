"""The cases of what a batch does to BatchNorm layers: one layer, and all layers of a network at once."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dfqlab_kernels
from dfqlab_kernels.bench import formulas
from dfqlab_kernels.bench.cases import DTYPES, OURS, Call, Case, activations, layouts_and_dtypes, leaf, random
from dfqlab_kernels.bench.networks import LAYER_SETS, LayerSet
from dfqlab_kernels.reference.alignment import Distance
from dfqlab_kernels.statistics import Per

GPU_SIZES = (1, 8, 64, 256)  # MiB
GPU_BATCHES = {"resnet18": (256,), "resnet50": (128,), "mobilenet_v2": (256,), "resnet20": (128, 256)}
CPU_BATCHES = {"resnet18": (2,), "resnet50": (1,), "mobilenet_v2": (1,), "resnet20": (32,)}
STATISTICS = {"eager": formulas.mean_and_var, "torch": formulas.var_mean, "hook": formulas.deep_inversion_hook}


def channel_stats(gpu: bool) -> list[Case]:
    """One tensor, of the batch and of each sample."""
    pers: tuple[Per, ...] = ("batch", "sample")
    cases = []
    if not gpu:
        cases += [_channel_stats((64, 64, 28, 28), per, "float32", "NCHW") for per in pers]
        cases += [_channel_stats((64, 64, 28, 28), "batch", "float32", "NHWC")]
        return [*cases, _channel_stats((64, 64, 28, 28), "batch", "bfloat16", "NCHW")]
    for layout, dtype in layouts_and_dtypes():
        cases += [_channel_stats(activations(size, dtype), "batch", dtype, layout) for size in GPU_SIZES]
        cases += [_channel_stats((256, 64, 56, 56), per, dtype, layout) for per in pers]
        cases += [_channel_stats((256, 512, 7, 7), "batch", dtype, layout)]
    return cases


def bn_alignment(gpu: bool) -> list[Case]:
    """The loss of all layers from their statistics: kilobytes, so launches decide."""
    names = LAYER_SETS if gpu else ("resnet18", "resnet20")
    distances: tuple[Distance, ...] = ("l2", "squared")
    return [_bn_alignment(LAYER_SETS[name], distance) for name in names for distance in distances]


def statistics_loss(name: str, gpu: bool) -> list[Case]:
    """Statistics of all layers and their distance from memory; x is only read."""
    return _sets(name, gpu, _statistics_loss)


def fused_layer(name: str, gpu: bool) -> list[Case]:
    """The same together with BatchNorm in eval mode and its activation, layer by layer."""
    return _sets(name, gpu, _fused_layer)


def _sets(name: str, gpu: bool, case: Any) -> list[Case]:
    if not gpu:
        return [case(LAYER_SETS[name], batch, "float32", "NCHW", False) for batch in CPU_BATCHES[name]]
    return [
        case(LAYER_SETS[name], batch, dtype, layout, name == "resnet20")
        for batch in GPU_BATCHES[name]
        for layout, dtype in layouts_and_dtypes()
    ]


def _channel_stats(shape: tuple[int, ...], per: Per, dtype: str, layout: str) -> Case:
    size = math.prod(shape) * DTYPES[dtype].itemsize
    dims = [0, 2, 3] if per == "batch" else [2, 3]

    def build(device: str) -> dict[str, Call]:
        x = leaf(shape, dtype, layout, device)
        results = [shape[d] for d in range(4) if d not in dims]
        upstream = [random(results, "float32", "", device, seed) for seed in (1, 2)]
        known = STATISTICS if per == "batch" else {k: f for k, f in STATISTICS.items() if k != "hook"}
        calls = {name: Call(partial(f, dims=dims), [x], upstream) for name, f in known.items()}
        ours = Call(partial(dfqlab_kernels.channel_stats, per=per), [x], upstream)
        return calls | {"compile": calls["eager"].compiled(), OURS: ours}

    label = f"per {per} {'x'.join(map(str, shape))}"
    return Case(label, dtype, layout, math.prod(shape), (size, 3 * size), (5, 8), build, reads_only=True)


def _bn_alignment(layers: LayerSet, distance: Distance) -> Case:
    channels, total = layers.channels, sum(layers.channels)

    def build(device: str) -> dict[str, Call]:
        mean, var = (leaf([total], "float32", "", device, seed) for seed in (0, 1))
        targets = tuple(random([total], "float32", "", device, seed) for seed in (2, 3))
        one = [torch.ones((), device=device)]

        def formula(mean: Tensor, var: Tensor, target_mean: Tensor, target_var: Tensor) -> Tensor:
            split = [t.split(channels) for t in (mean, var, target_mean, target_var)]
            if distance == "l2":
                return formulas.norms(list(zip(*split[:2], strict=True)), list(zip(*split[2:], strict=True)))
            pairs = zip(*split, strict=True)
            return torch.stack([(m - n).square().sum() + (v - w).square().sum() for m, v, n, w in pairs]).sum()

        eager = Call(formula, [mean, var], one, targets)
        ours = partial(dfqlab_kernels.bn_alignment, channels=channels, distance=distance)
        calls = {"eager": eager, OURS: Call(ours, [mean, var], one, targets)}
        return calls | ({"compile": eager.compiled()} if device != "cpu" else {})

    return Case(
        f"{layers.name}, {distance}", "float32", "", total, (16 * total, 40 * total), (6, 12), build, small=True
    )


def _statistics_loss(layers: LayerSet, batch: int, dtype: str, layout: str, small: bool) -> Case:
    size = layers.elements(batch) * DTYPES[dtype].itemsize

    def build(device: str) -> dict[str, Call]:
        xs, (target_mean, target_var) = _inputs(layers, batch, dtype, layout, device), _targets(layers, device)
        pairs = list(zip(target_mean.split(layers.channels), target_var.split(layers.channels), strict=True))
        one = [torch.ones((), device=device)]

        def formula(*xs: Tensor, read: Any) -> Tensor:
            return formulas.norms([read(x, [0, 2, 3]) for x in xs], pairs)

        def ours(*xs: Tensor) -> Tensor:
            return _loss([dfqlab_kernels.tap_channel_stats(x)[1] for x in xs], layers, target_mean, target_var)

        calls = {name: Call(partial(formula, read=read), xs, one) for name, read in STATISTICS.items()}
        calls[OURS] = Call(ours, xs, one)
        return calls | ({"compile": calls["eager"].compiled()} if device != "cpu" else {})

    return Case(
        f"{layers.name}, batch {batch}", dtype, layout, layers.elements(batch),
        (size, 3 * size), (5, 8), build, reads_only=True, small=small,
    )  # fmt: skip


def _fused_layer(layers: LayerSet, batch: int, dtype: str, layout: str, small: bool) -> Case:
    size = layers.elements(batch) * DTYPES[dtype].itemsize

    def build(device: str) -> dict[str, Call]:
        xs, (target_mean, target_var) = _inputs(layers, batch, dtype, layout, device), _targets(layers, device)
        pairs = list(zip(target_mean.split(layers.channels), target_var.split(layers.channels), strict=True))
        scales = [torch.linspace(0.5, 1.5, c, device=device) for c in layers.channels]
        shifts = [torch.linspace(-0.5, 0.5, c, device=device) for c in layers.channels]
        rows = list(zip(scales, shifts, strict=True))
        # A memory of N(0, 1) makes scale and shift of BatchNorm in eval mode its weight and bias.
        memories = [(torch.zeros_like(shift), torch.ones_like(scale), scale, shift) for scale, shift in rows]
        upstream = [torch.ones((), device=device)]
        upstream += [random(x.shape, dtype, layout, device, 500 + k) for k, x in enumerate(xs)]

        def formula(*xs: Tensor, read: Any) -> tuple[Tensor, ...]:
            pairs_of = zip(xs, memories, strict=True)
            ys = [formulas.batch_norm_activation(x, memory, layers.activation) for x, memory in pairs_of]
            return formulas.norms([read(x, [0, 2, 3]) for x in xs], pairs), *ys

        def tap(*xs: Tensor) -> tuple[Tensor, ...]:
            through = [dfqlab_kernels.tap_channel_stats(x) for x in xs]
            pairs_of = zip((x for x, _ in through), memories, strict=True)
            ys = [formulas.batch_norm_activation(x, memory, layers.activation) for x, memory in pairs_of]
            return _loss([moments for _, moments in through], layers, target_mean, target_var), *ys

        def ours(*xs: Tensor) -> tuple[Tensor, ...]:
            found = [
                dfqlab_kernels.bn_activation_stats(x, *row, activation=layers.activation)
                for x, row in zip(xs, rows, strict=True)
            ]
            return _loss([moments for _, moments in found], layers, target_mean, target_var), *(y for y, _ in found)

        calls = {name: Call(partial(formula, read=STATISTICS[name]), xs, upstream) for name in ("eager", "hook")}
        calls |= {"tap": Call(tap, xs, upstream), OURS: Call(ours, xs, upstream)}
        return calls | ({"compile": calls["eager"].compiled()} if device != "cpu" else {})

    return Case(
        f"{layers.name}, batch {batch}", dtype, layout, layers.elements(batch),
        (2 * size, 5 * size), (8, 16), build, small=small,
    )  # fmt: skip


def _inputs(layers: LayerSet, batch: int, dtype: str, layout: str, device: str) -> list[Tensor]:
    return [
        leaf((batch, channels, side, side), dtype, layout, device, seed)
        for seed, (channels, side) in enumerate(layers.layers)
    ]


def _targets(layers: LayerSet, device: str) -> tuple[Tensor, Tensor]:
    """What BatchNorm remembers: not what the batch is, or norms had no gradient."""
    total = sum(layers.channels)
    return torch.linspace(-1, 1, total, device=device), torch.linspace(0.5, 2, total, device=device)


def _loss(moments: list[Tensor], layers: LayerSet, target_mean: Tensor, target_var: Tensor) -> Tensor:
    mean, var = dfqlab_kernels.merge_moments(moments)
    return dfqlab_kernels.bn_alignment(
        mean, var, target_mean, target_var, channels=layers.channels, distance="l2", spread="var"
    )
