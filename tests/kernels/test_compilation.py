"""Every program compiles for a GPU, on a machine that has none: what the interpreter lets pass, a compiler does not.

Launches are caught and their arguments handed to Triton's compiler, specialised as a launch specialises them: an
integer 1 becomes a constant, a multiple of 16 is known to be one. Nothing runs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import backends

triton = pytest.importorskip("triton", reason="triton is not installed")
if backends._interpreted():
    pytest.skip("a process that interprets Triton does not compile it", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

import dfqlab_kernels as kernels  # noqa: E402

POINTERS = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
HOPPER = GPUTarget("cuda", 90, 32)


def compile_only(compiled: list[tuple[str, str]]) -> Callable[..., None]:
    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [p.name for p in kernel.params]
        bound = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        options = {k: v for k, v in kwargs.items() if k not in names}
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = bound[parameter.name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                signature[parameter.name], constants[(index,)] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[(index,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = parameter.annotation_type or "fp32"
        source = ASTSource(kernel, signature, constants, attributes)
        result = triton.compile(source, target=HOPPER, options=options)
        compiled.append((kernel.__name__, result.asm["ptx"]))

    return run


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Names and PTX of the programs that were compiled instead of launched."""
    programs: list[tuple[str, str]] = []
    monkeypatch.setattr(JITFunction, "run", compile_only(programs))
    monkeypatch.setattr(backends, "triton_obstacle", lambda device_type: "")
    with kernels.backend("triton"):
        yield programs


SHAPES = {"even": (4, 32, 28, 28), "ragged": (3, 5, 7, 7), "one channel": (8, 1, 16, 16), "vectors": (64, 10)}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
CASES = [(shape, torch.float32) for shape in SHAPES] + [("even", torch.bfloat16), ("ragged", torch.float64)]


def images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_statistics(name: str, dtype: torch.dtype, compiled: list[tuple[str, str]]) -> None:
    shape = SHAPES[name]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for x in (
        images(shape, dtype),
        images(shape, dtype).detach().transpose(1, -1).contiguous().transpose(1, -1).requires_grad_(),
    ):
        scale = torch.ones(shape[1])
        through, first = kernels.tap_channel_stats(x, per="sample" if len(shape) > 2 else "batch")
        y, second = kernels.bn_activation_stats(
            through, scale, scale, activation="relu6", residual=x, per="sample" if len(shape) > 2 else "batch"
        )
        mean, var = kernels.merge_moments([first, second], per="sample" if len(shape) > 2 else "batch", correction=1)
        target = torch.ones(2 * shape[1], dtype=torch.float64 if name == "even" else wide)  # of another type, too
        for distance in ("squared", "l2", "kl"):
            margins = {} if distance == "kl" else {"mean_margin": target, "spread_margin": target}
            loss = kernels.bn_alignment(
                mean,
                var,
                target,
                target,
                channels=[shape[1]] * 2,
                distance=distance,
                spread="std",
                epsilon=1e-3,
                **margins,
            )
            (y.sum() + loss).backward(retain_graph=True)
    assert {name for name, _ in compiled} == {
        "_moments",
        "_moments_backward",
        "_merge",
        "_merge_backward",
        "_align",
        "_align_backward",
    }


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(("name", "dtype"), [case for case in CASES if case[0] != "one channel"])
def test_quantization(name: str, axis: int | None, dtype: torch.dtype, compiled: list[tuple[str, str]]) -> None:
    shape = SHAPES[name]
    x = images(shape, dtype)
    scale = torch.ones(1 if axis is None else shape[axis]).requires_grad_()
    grid = {"quant_min": -8, "quant_max": 7, "axis": axis}
    for zero_point in (None, torch.zeros_like(scale, dtype=torch.int32)):
        for save in ("mask", "input"):
            kernels.fake_quantize(x, scale.detach(), zero_point, save=save, **grid).sum().backward()  # type: ignore[arg-type]
    for learned in (None, torch.zeros_like(scale).requires_grad_()):
        kernels.learned_step_quantize(x, scale, learned, **grid).sum().backward()
    assert len({name for name, _ in compiled}) >= 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_rounding(dtype: torch.dtype, compiled: list[tuple[str, str]]) -> None:
    packing = kernels.Packing(((8, 3, 3, 3), (10, 64)))
    weights, logits = torch.zeros(packing.total, dtype=dtype), torch.zeros(packing.total, dtype=dtype).requires_grad_()
    for zero_point in (None, torch.zeros(packing.rows, dtype=torch.int32)):
        for hard in (False, True):
            y, penalty = kernels.soft_round_quantize(
                weights,
                logits,
                torch.ones(packing.rows),
                zero_point,
                packing=packing,
                quant_min=-8,
                quant_max=7,
                hard=hard,
            )
            if not hard:
                (y.sum() + penalty).backward()
    assert {"_forward", "_backward", "_hard"} <= {name for name, _ in compiled}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thread_moves_sixteen_bytes_at_a_time(
    dtype: torch.dtype, memory_format: torch.memory_format, compiled: list[tuple[str, str]]
) -> None:
    x = torch.zeros(16, 64, 56, 56, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    scale = torch.ones(64).requires_grad_()
    y, moments = kernels.bn_activation_stats(x, scale.detach(), scale.detach(), activation="relu")
    z = kernels.fake_quantize(y, scale.detach(), quant_min=-8, quant_max=7, axis=1)
    z = kernels.learned_step_quantize(z, scale, quant_min=-8, quant_max=7, axis=1)
    (z.sum() + moments.sum()).backward()
    tile = 2048 * dtype.itemsize // (128 * 16)  # accesses of one of the 128 threads to a tile
    for name, ptx in compiled:
        if name != "_merge":  # of partial sums
            assert ptx.count("st.global.v4.b32") == tile, f"{name} writes its tile in smaller pieces"
            assert ptx.count("ld.global.v4.b32") >= tile, f"{name} reads its tile in smaller pieces"
