"""Rescaled networks compute what they did, and their channels differ in scale."""

import pytest
import torch
from torch import nn

import dfqlab
from benchmarks.rescaling import OCTAVES, rescaled, with_relu


@pytest.fixture(scope="module")
def plain() -> dfqlab.Teacher:
    return with_relu(dfqlab.load_teacher("digits/mobilenet"))


def test_no_relu6_is_left_and_the_teacher_keeps_its_own(plain: dfqlab.Teacher) -> None:
    teacher = dfqlab.load_teacher("digits/mobilenet")
    assert not any(isinstance(module, nn.ReLU6) for module in plain.module.modules())
    assert any(isinstance(module, nn.ReLU6) for module in teacher.module.modules())


def test_a_rescaled_network_computes_what_it_did(plain: dfqlab.Teacher) -> None:
    x = torch.rand(8, *plain.input.size)
    torch.testing.assert_close(rescaled(plain)(x), plain(x), rtol=0, atol=1e-4)


def test_both_layers_of_every_block_are_rescaled_and_nothing_else(plain: dfqlab.Teacher) -> None:
    before, after = (dict(teacher.module.named_parameters()) for teacher in (plain, rescaled(plain)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {name.removesuffix(".weight") for name in changed if f"{name.removesuffix('.weight')}.bias" in changed}
    assert len(norms) == 10  # two in each of five blocks
    assert len(changed) == 3 * 10
    factors = torch.cat([after[f"{name}.weight"] / before[f"{name}.weight"] for name in norms])
    assert float(factors.log2().abs().max()) <= OCTAVES + 1e-4
    assert float(factors.log2().std()) == pytest.approx(2 * OCTAVES / 12**0.5, rel=0.1)


def test_factors_are_those_of_their_seed(plain: dfqlab.Teacher) -> None:
    one, again, other = (rescaled(plain, seed).module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
