"""The hot paths of dfqlab: pretending to be an integer, and reading what a batch does to a BatchNorm layer.

Each op has one public function. On a GPU it runs a Triton kernel; elsewhere it is its definition in plain torch.
"""

from dfqlab_kernels.activation import bn_activation_stats
from dfqlab_kernels.alignment import bn_alignment
from dfqlab_kernels.backends import backend, current_backend, explain_backend
from dfqlab_kernels.errors import BackendError, DeviceError, ShapeError
from dfqlab_kernels.learned_step import learned_step_quantize
from dfqlab_kernels.quantization import fake_quantize
from dfqlab_kernels.soft_round import Packing, initial_logits, soft_round_quantize
from dfqlab_kernels.statistics import channel_stats, merge_moments, tap_channel_stats

__all__ = [
    "BackendError",
    "DeviceError",
    "Packing",
    "ShapeError",
    "backend",
    "bn_activation_stats",
    "bn_alignment",
    "channel_stats",
    "current_backend",
    "explain_backend",
    "fake_quantize",
    "initial_logits",
    "learned_step_quantize",
    "merge_moments",
    "soft_round_quantize",
    "tap_channel_stats",
]
