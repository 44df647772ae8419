"""What the benchmark measures: known networks, every op, and competitors that compute the same."""

import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor

import dfqlab_kernels
from dfqlab_kernels.bench import layers, networks, quantizers
from dfqlab_kernels.bench.cases import OURS, Call, Case
from dfqlab_kernels.bench.registry import BENCHES

HELPERS = {"current_backend", "explain_backend", "initial_logits"}
SMALL = networks.LayerSet("small", "relu6", "6@5*2 4@3")


def flat(tensors: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


def known_calls(case: Case) -> dict[str, Call]:
    """Those that need no compiler."""
    return {who: call for who, call in case.build("cpu").items() if who != "compile"}


@pytest.mark.parametrize(
    ("name", "count", "elements", "batch"),
    [
        ("resnet18", 20, 635_830_272, 256),
        ("resnet50", 53, 1_422_589_952, 128),
        ("mobilenet_v2", 52, 1_709_596_672, 256),
        ("resnet20", 19, 24_117_248, 128),
    ],
)
def test_layer_sets_have_the_layers_and_elements_of_their_network(
    name: str, count: int, elements: int, batch: int
) -> None:
    layer_set = networks.LAYER_SETS[name]
    assert len(layer_set.layers) == len(layer_set.channels) == count
    assert layer_set.elements(batch) == elements


@pytest.mark.parametrize(("name", "count", "total"), [("resnet18", 21, 11_678_912), ("resnet20", 20, 268_336)])
def test_weights_are_those_of_their_network(name: str, count: int, total: int) -> None:
    shapes = networks.weights(name)  # type: ignore[arg-type]
    assert (len(shapes), sum(map(math.prod, shapes))) == (count, total)


def test_every_public_op_is_measured() -> None:
    public = {name for name in dfqlab_kernels.__all__ if inspect.isfunction(getattr(dfqlab_kernels, name))}
    assert {op for bench in BENCHES.values() for op in bench.ops} == public - HELPERS


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("name", BENCHES)
def test_every_case_is_told_from_the_others_and_has_a_floor(name: str, gpu: bool) -> None:
    cases = BENCHES[name].cases(gpu)
    assert cases
    assert len({(case.label, case.dtype, case.layout) for case in cases}) == len(cases)
    for case in cases:
        forward, both = case.floor
        assert 0 < forward <= both
        assert 0 < case.operations[0] <= case.operations[1]


def test_a_gpu_sees_a_mebibyte_and_more_than_sixty_four_in_both_layouts_and_dtypes() -> None:
    found = {
        (case.elements * (4 if case.dtype == "float32" else 2) >> 20, case.dtype, case.layout)
        for case in BENCHES["fake_quantize"].cases(True)
    }
    wanted = set(itertools.product((1, 64, 256), ("float32", "bfloat16"), ("NCHW", "NHWC")))
    assert wanted <= found


QUANTIZERS = [
    *[quantizers._fake_quantize((4, 6, 5, 3), axis) for axis in (None, 1)],
    quantizers._fake_quantize((4, 6, 5, 3), 1, kind="from x", layout="NHWC"),
    quantizers._fake_quantize((7, 6, 3, 3), 0),
    *[quantizers._learned_step((4, 6, 5, 3), axis) for axis in (None, 1)],
]
OTHERS = [
    quantizers._fake_quantize((4, 6, 5, 3), 1, kind="everywhere"),
    quantizers._soft_round("resnet20"),
    layers._channel_stats((4, 6, 5, 3), "batch", "float32", "NHWC"),
    layers._channel_stats((4, 6, 5, 3), "sample", "float32", "NCHW"),
    layers._bn_alignment(SMALL, "l2"),
    layers._bn_alignment(SMALL, "squared"),
    layers._statistics_loss(SMALL, 4, "float32", "NCHW", False),
    layers._fused_layer(SMALL, 4, "float32", "NCHW", False),
]


def assert_same(who: str, found: Call, expected: Call) -> None:
    for a, b in ((found.forward(), expected.forward()), (found.both(), expected.both())):
        torch.testing.assert_close(flat(a), flat(b), rtol=2e-4, atol=1e-5, msg=lambda m: f"{who}: {m}")


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case.label} {case.layout}")
def test_competitors_compute_the_same_forward_and_backward(case: Case) -> None:
    calls = known_calls(case)
    assert {"eager", OURS} <= calls.keys()
    assert flat(calls[OURS].both()).any()
    for who, call in calls.items():
        assert_same(who, call, calls[OURS])


@pytest.mark.parametrize("case", QUANTIZERS, ids=lambda case: f"{case.label} {case.layout} {case.operations}")
def test_quantizers_compute_the_same_but_for_the_gradient_that_formulas_lose_at_the_ends(case: Case) -> None:
    calls = known_calls(case)
    assert {"eager", "torch", OURS} <= calls.keys()
    assert_same("torch", calls["torch"], calls[OURS])
    for who in calls.keys() - {"torch", OURS}:
        torch.testing.assert_close(calls[who].forward(), calls[OURS].forward(), msg=lambda m, w=who: f"{w}: {m}")
        found, expected = calls[who].both()[0], calls[OURS].both()[0]
        elsewhere = found != 0
        torch.testing.assert_close(found[elsewhere], expected[elsewhere], msg=lambda m, w=who: f"{w}: {m}")
        assert (found != 0).sum() > 0.9 * (expected != 0).sum()


def test_a_sixteenth_of_the_values_or_so_is_clipped() -> None:
    """Or a mask would cost what it never costs."""
    calls = known_calls(quantizers._fake_quantize((16, 6, 15, 13), 1))
    (dx,) = calls[OURS].both()
    share = (dx == 0).float().mean().item()
    assert 0.01 < share < 0.2
