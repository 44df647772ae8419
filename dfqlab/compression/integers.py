"""The modules of a compressed network: integers and scales, and two ops that an exporter can name.

Both ops are opaque to torch.export, so that an integer stays visible as an integer in what is exported.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfqlab_kernels
from dfqlab.compression.quantizers import QuantizationParameters


@torch.library.custom_op("dfqlab::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Round an activation to its grid; exported as QuantizeLinear, Clip, DequantizeLinear."""
    return dfqlab_kernels.fake_quantize(x, scale, zero_point, quant_min=quant_min, quant_max=quant_max)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("dfqlab::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Integers times their scale along the first axis; exported as DequantizeLinear."""
    return codes.to(scale.dtype) * scale.reshape(-1, *[1] * (codes.dim() - 1))


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor) -> Tensor:
    return torch.empty(codes.shape, dtype=scale.dtype, device=codes.device)


class Requantize(nn.Module):
    """An activation on its integer grid, as reals."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, name: str, quant_min: int, quant_max: int) -> None:
        super().__init__()
        self.name = name
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    @classmethod
    def from_parameters(cls, name: str, parameters: QuantizationParameters) -> "Requantize":
        module = cls(name, parameters.quant_min, parameters.quant_max)
        module.scale = parameters.scale.clone()
        module.zero_point = torch.tensor(parameters.zero_point, dtype=torch.uint8)
        return module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = quantize_dequantize(x, self.scale, self.zero_point, self.quant_min, self.quant_max)
        return y


class _IntegerLayer(nn.Module):
    """int8 weight codes with a scale for each output channel, and an int32 bias on the grid of the accumulator."""

    codes: Tensor
    scale: Tensor
    bias_codes: Tensor | None
    bias_scale: Tensor

    def __init__(self, shape: tuple[int, ...], bits: int, bias: bool) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(shape[0]))
        self.register_buffer("bias_codes", torch.zeros(shape[0], dtype=torch.int32) if bias else None)
        self.register_buffer("bias_scale", torch.ones(shape[0]))

    @property
    def weight(self) -> Tensor:
        """The weights as reals."""
        weight: Tensor = dequantize(self.codes, self.scale)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias as reals."""
        return None if self.bias_codes is None else dequantize(self.bias_codes, self.bias_scale)


class IntegerConv2d(_IntegerLayer):
    """A convolution whose parameters are integers."""

    def __init__(
        self,
        shape: tuple[int, ...],
        bits: int,
        bias: bool,
        stride: tuple[int, ...],
        padding: str | tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__(shape, bits, bias)
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class IntegerLinear(_IntegerLayer):
    """A linear layer whose parameters are integers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class CapChannels(nn.Module):
    """A cap for each channel, (c,), on the grid of what it caps: the smaller code is the code of the smaller."""

    caps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("caps", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(x, self.caps.reshape(-1, *[1] * (x.dim() - 2)))


class GlobalAveragePool(nn.Module):
    """The mean of each plane, on the grid of what is averaged; kept as one operation that runtimes know."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = global_average_pool(x, self.scale)
        return y


@torch.library.custom_op("dfqlab::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor, scale: Tensor) -> Tensor:
    """Mean of each plane of values on a grid, rounded to that grid: (n, c, h, w) to (n, c, 1, 1).

    A mean of codes often lies just between two; the codes are averaged, so that rounding decides as a runtime's does,
    half to even. Exported as GlobalAveragePool: the quantizer behind it rounds.
    """
    codes = torch.round(x.double() / scale.double())
    return (torch.round(codes.mean((2, 3), keepdim=True)) * scale.double()).to(x.dtype)


@global_average_pool.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], 1, 1))
