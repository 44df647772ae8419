"""The definition of every op, in plain torch: float32 inside for 16- and 32-bit input, float64 for float64.

On a CPU the public function is this definition. Every faster kernel is held to it by tests.
"""

from dfqlab_kernels.reference.alignment import bn_alignment
from dfqlab_kernels.reference.learned_step import learned_step_quantize
from dfqlab_kernels.reference.quantization import fake_quantize
from dfqlab_kernels.reference.soft_round import hard_round_quantize, initial_logits, soft_round_quantize
from dfqlab_kernels.reference.statistics import bn_activation_stats, channel_moments, channel_stats, merge_moments

__all__ = [
    "bn_activation_stats",
    "bn_alignment",
    "channel_moments",
    "channel_stats",
    "fake_quantize",
    "hard_round_quantize",
    "initial_logits",
    "learned_step_quantize",
    "merge_moments",
    "soft_round_quantize",
]
