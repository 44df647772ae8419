"""Everything that can be measured, by the name it has on the command line."""

from functools import partial

from dfqlab_kernels.bench import layers, quantizers
from dfqlab_kernels.bench.cases import Bench
from dfqlab_kernels.bench.networks import LAYER_SETS

_LOSS = ("merge_moments", "bn_alignment")

BENCHES: dict[str, Bench] = {
    "fake_quantize": Bench(("fake_quantize",), quantizers.fake_quantize),
    "learned_step_quantize": Bench(("learned_step_quantize",), quantizers.learned_step_quantize),
    "soft_round_quantize": Bench(("soft_round_quantize",), quantizers.soft_round_quantize),
    "channel_stats": Bench(("channel_stats",), layers.channel_stats),
    "bn_alignment": Bench(("bn_alignment",), layers.bn_alignment),
    **{
        f"statistics_loss_{name}": Bench(("tap_channel_stats", *_LOSS), partial(layers.statistics_loss, name))
        for name in LAYER_SETS
    },
    **{
        f"fused_layer_{name}": Bench(("bn_activation_stats", *_LOSS), partial(layers.fused_layer, name))
        for name in LAYER_SETS
    },
}
