"""The cases of the ops that pretend to be integers."""

import math
from functools import partial

import torch
from torch import Tensor

import dfqlab_kernels
from dfqlab_kernels.bench import formulas
from dfqlab_kernels.bench.cases import DTYPES, OURS, Call, Case, activations, leaf, random
from dfqlab_kernels.bench.networks import weights

LOW, HIGH = -8, 7  # four bits: about one value in fourteen is clipped
GPU_SIZES = (1, 8, 64, 256)  # MiB
CPU_ACTIVATIONS, CPU_WEIGHTS = (64, 64, 28, 28), (256, 128, 3, 3)


def fake_quantize(gpu: bool) -> list[Case]:
    """Per tensor and per channel; gradients stopped where clipped, or nowhere; x kept instead of a mask."""
    if not gpu:
        cases = [
            _fake_quantize(CPU_ACTIVATIONS, 1),
            _fake_quantize(CPU_ACTIVATIONS, 1, layout="NHWC"),
            _fake_quantize(CPU_ACTIVATIONS, 1, dtype="bfloat16"),
            _fake_quantize(CPU_ACTIVATIONS, None),
            _fake_quantize(CPU_ACTIVATIONS, 1, kind="everywhere"),
            _fake_quantize(CPU_WEIGHTS, 0),
            _fake_quantize(CPU_WEIGHTS, 0, kind="everywhere"),
        ]
        return cases
    cases = []
    for dtype in DTYPES:
        for size in GPU_SIZES:
            shape = activations(size, dtype)
            cases += [_fake_quantize(shape, None, dtype=dtype)]
            cases += [_fake_quantize(shape, 1, dtype=dtype, layout=layout) for layout in ("NCHW", "NHWC")]
        cases += [_fake_quantize(activations(64, dtype), 1, dtype=dtype, kind=k) for k in ("everywhere", "from x")]
        cases += [_fake_quantize((512, 512, 3, 3), 0, dtype=dtype), _fake_quantize((2048, 512, 7, 7), 1, dtype=dtype)]
    return cases


def learned_step_quantize(gpu: bool) -> list[Case]:
    """LSQ with a zero point, per tensor and per channel."""
    if not gpu:
        return [_learned_step((16, 64, 28, 28), axis) for axis in (None, 1)]
    cases = []
    for dtype in DTYPES:
        for size in GPU_SIZES:
            shape = activations(size, dtype)
            cases += [_learned_step(shape, None, dtype=dtype)]
            cases += [_learned_step(shape, 1, dtype=dtype, layout=layout) for layout in ("NCHW", "NHWC")]
        cases += [_learned_step((256, 64, 56, 56), 1, dtype=dtype), _learned_step((512, 512, 3, 3), 0, dtype=dtype)]
    return cases


def soft_round_quantize(gpu: bool) -> list[Case]:
    """All weights of a network."""
    return [_soft_round("resnet18"), _soft_round("resnet20")] if gpu else [_soft_round("resnet20")]


def _fake_quantize(
    shape: tuple[int, ...], axis: int | None, dtype: str = "float32", layout: str = "NCHW", kind: str = "clipped"
) -> Case:
    elements = math.prod(shape)
    size, mask = elements * DTYPES[dtype].itemsize, elements // 8
    floor = {
        "clipped": (2 * size + mask, 4 * size + 2 * mask),
        "everywhere": (2 * size, 2 * size),
        "from x": (2 * size, 5 * size),
    }[kind]
    note = {"clipped": "", "everywhere": ", whole dy", "from x": ", x kept"}[kind]

    def build(device: str) -> dict[str, Call]:
        x, dy = leaf(shape, dtype, layout, device), random(shape, dtype, layout, device, 1)
        scale, zero_point, broadcast = _qparams(shape, axis, device)
        zero_point = zero_point.to(torch.int32)
        wide = (scale.view(broadcast), zero_point.view(broadcast), LOW, HIGH)
        if kind == "everywhere":
            calls = {"eager": Call(formulas.fake_quantize_everywhere, [x], [dy], wide)}
        else:
            calls = {
                "eager": Call(formulas.fake_quantize, [x], [dy], wide),
                "function": Call(formulas.fake_quantize_by_function, [x], [dy], wide),
                "torch": Call(partial(_torchs, axis=axis), [x], [dy], (scale, zero_point)),
            }
        ours = partial(
            dfqlab_kernels.fake_quantize, quant_min=LOW, quant_max=HIGH, axis=axis,
            clip_gradient=kind != "everywhere", save="input" if kind == "from x" else "mask",
        )  # fmt: skip
        best = calls.get("function", calls["eager"])
        return calls | {"compile": best.compiled(), OURS: Call(ours, [x], [dy], (scale, zero_point))}

    label = f"{_granularity(axis)} {_by(shape)}{note}"
    return Case(label, dtype, layout, elements, floor, (9, 10) if kind == "clipped" else (7, 7), build)


def _learned_step(shape: tuple[int, ...], axis: int | None, dtype: str = "float32", layout: str = "NCHW") -> Case:
    elements = math.prod(shape)
    size = elements * DTYPES[dtype].itemsize
    factor = 1 / math.sqrt(elements * HIGH)

    def build(device: str) -> dict[str, Call]:
        x, dy = leaf(shape, dtype, layout, device), random(shape, dtype, layout, device, 1)
        scale, zero_point, broadcast = _qparams(shape, axis, device)
        inputs = [x, scale.requires_grad_(), zero_point.requires_grad_()]
        eager = Call(formulas.learned_step, inputs, [dy], (LOW, HIGH, factor, broadcast))
        ours = partial(
            dfqlab_kernels.learned_step_quantize, quant_min=LOW, quant_max=HIGH, axis=axis, gradient_scale=factor
        )
        return {
            "eager": eager,
            "torch": Call(partial(_torchs_learnable, axis=axis, factor=factor), inputs, [dy]),
            "compile": eager.compiled(),
            OURS: Call(ours, inputs, [dy]),
        }

    return Case(f"{_granularity(axis)} {_by(shape)}", dtype, layout, elements, (2 * size, 5 * size), (7, 19), build)


def _soft_round(network: str) -> Case:
    shapes = weights("resnet20" if network == "resnet20" else "resnet18")
    elements = sum(map(math.prod, shapes))

    def build(device: str) -> dict[str, Call]:
        tensors = [random(shape, "float32", "", device, k) for k, shape in enumerate(shapes)]
        scales = [torch.full((shape[0], *[1] * (len(shape) - 1)), 0.3, device=device) for shape in shapes]
        logits = [leaf(shape, "float32", "", device, 100 + k) for k, shape in enumerate(shapes)]
        upstream = [random(shape, "float32", "", device, 200 + k) for k, shape in enumerate(shapes)]
        one = torch.ones((), device=device)
        formula = partial(formulas.soft_round, low=LOW, high=HIGH, beta=20.0)
        eager = Call(formula, logits, [*upstream, one], (*tensors, *scales))
        packing = dfqlab_kernels.Packing.of(tensors)
        packed = packing.pack([logit.detach() for logit in logits]).requires_grad_()
        flat = (packing.pack(tensors), torch.cat([scale.flatten() for scale in scales]))
        beta = torch.tensor(20.0, device=device)

        def ours(logits: Tensor, weights: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            return dfqlab_kernels.soft_round_quantize(
                weights, logits, scale, packing=packing, quant_min=LOW, quant_max=HIGH, beta=beta
            )

        calls = {"eager": eager, OURS: Call(ours, [packed], [packing.pack(upstream), one], flat)}
        return calls | ({"compile": eager.compiled()} if device != "cpu" else {})

    label = f"all {len(shapes)} weights of {'ResNet-20' if network == 'resnet20' else 'ResNet-18'}"
    return Case(label, "float32", "", elements, (12 * elements, 28 * elements), (23, 53), build, small=True)


def _torchs(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, LOW, HIGH)
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, LOW, HIGH)


def _torchs_learnable(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, factor: float) -> Tensor:
    if axis is None:
        found = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, LOW, HIGH, factor)
    else:
        found = torch._fake_quantize_learnable_per_channel_affine(x, scale, zero_point, axis, LOW, HIGH, factor)
    return found


def _qparams(shape: tuple[int, ...], axis: int | None, device: str) -> tuple[Tensor, Tensor, list[int]]:
    """Scale, zero point (positive: torch's learnable op rounds negative ones in two ways), and how they broadcast."""
    count = 1 if axis is None else shape[axis]
    broadcast = [1] * len(shape)
    broadcast[axis or 0] = count
    scale = torch.linspace(0.4, 0.6, count, device=device) if count > 1 else torch.full((1,), 0.5, device=device)
    return scale, torch.arange(count, device=device).remainder(3).add(1).float(), broadcast


def _granularity(axis: int | None) -> str:
    return "per tensor" if axis is None else "per channel"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
