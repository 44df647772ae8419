"""`soft_round_quantize`, the definition: AdaRound's equations 22 to 24, and weights that are packed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dfqlab_kernels import Packing, ShapeError, initial_logits, soft_round_quantize

SHAPES = ((3, 2, 3, 3), (5,), (2, 7), (0, 4), (1, 1))
GRID: dict[str, Any] = {"quant_min": -8, "quant_max": 7}


def random(*shape: int, seed: int = 0, factor: float = 2.0) -> Tensor:
    return factor * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_tensor(
    weight: Tensor, logit: Tensor, scale: Tensor, point: Tensor, beta: float, gamma: float = -0.1, zeta: float = 1.1
) -> tuple[Tensor, Tensor]:
    """The equations as they stand, for one weight tensor in float64."""
    rows = [-1] + [1] * (weight.dim() - 1)
    s, z = scale.double().reshape(rows), point.double().reshape(rows)
    h = (torch.sigmoid(logit.double()) * (zeta - gamma) + gamma).clamp(0, 1)
    y = (((weight.double() / s).floor() + h + z).clamp(-8, 7) - z) * s
    return y, (1 - (2 * h - 1).abs() ** beta).sum()


@pytest.mark.parametrize("beta", [2.0, 3.5, 20.0])
@pytest.mark.parametrize("stretch", [(-0.1, 1.1), (0.0, 1.0)])
def test_packed_tensors_are_rounded_as_each_of_them_alone(stretch: tuple[float, float], beta: float) -> None:
    packing = Packing(SHAPES)
    weights = [random(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    logits = [random(*shape, seed=9 + i) for i, shape in enumerate(SHAPES)]
    scale, point = random(packing.rows, seed=20).abs() + 0.1, torch.arange(packing.rows) % 5 - 2
    flat = packing.pack(logits).requires_grad_()
    y, penalty = soft_round_quantize(
        packing.pack(weights), flat, scale, point, packing=packing, **GRID, beta=beta, stretch=stretch
    )
    dy = random(packing.total, seed=30)
    (found,) = torch.autograd.grad((y * dy).sum() + 0.3 * penalty, flat)

    exact = [logit.double().requires_grad_() for logit in logits]
    parts = zip(weights, exact, scale.split([s[0] for s in SHAPES]), point.split([s[0] for s in SHAPES]), strict=True)
    results = [by_tensor(*part, beta, *stretch) for part in parts]
    for mine, (expected, _) in zip(packing.unpack(y), results, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-5)
    total = sum(p for _, p in results)
    assert penalty.item() == pytest.approx(total.item(), rel=1e-5)  # type: ignore[union-attr]
    loss = sum((a * b.double()).sum() for (a, _), b in zip(results, packing.unpack(dy), strict=True))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss + 0.3 * total, exact)])  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_agrees_with_finite_differences() -> None:
    packing, weights, logits = Packing(((2, 4),)), random(8).double(), random(8, seed=1).double().requires_grad_()
    scale = torch.tensor([0.5, 0.8]).double()

    def f(v: Tensor) -> tuple[Tensor, Tensor]:
        return soft_round_quantize(weights, v, scale, packing=packing, **GRID, beta=3.0)

    assert torch.autograd.gradcheck(f, (logits,))


def test_clipped_weights_and_settled_logits_have_no_gradient_through_y() -> None:
    packing, weights = Packing(((1, 4),)), torch.tensor([100.0, -100.0, 0.3, 0.3])
    logits = torch.tensor([0.0, 0.0, 9.0, 0.0], requires_grad=True)
    y, _ = soft_round_quantize(weights, logits, torch.ones(1), packing=packing, **GRID)
    assert y.tolist() == [7.0, -8.0, 1.0, 0.5]
    (gradient,) = torch.autograd.grad(y.sum(), logits)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 0.0, 1.2 / 4])


@pytest.mark.parametrize(
    ("stretch", "quant_min", "quant_max"),
    [((-1.0, 1.0), -8, 7), ((0.0, 2.0), -8, 7), ((-1.0, 3.0), 1, 7), ((-1.0, 3.0), -8, 1)],
    ids=["h is 0", "h is 1", "y is the first code", "y is the last code"],
)
def test_at_the_very_ends_the_gradient_passes(stretch: tuple[float, float], quant_min: int, quant_max: int) -> None:
    """As it does in Triton; at a tie of its own clamp, torch gives 0, 1/2 or 1."""
    packing, logits = Packing(((1, 1),)), torch.zeros(1, requires_grad=True)
    y, _ = soft_round_quantize(
        torch.zeros(1),
        logits,
        torch.ones(1),
        packing=packing,
        quant_min=quant_min,
        quant_max=quant_max,
        stretch=stretch,
    )
    assert y.item() == (stretch[0] + stretch[1]) / 2
    assert torch.autograd.grad(y.sum(), logits)[0].item() == (stretch[1] - stretch[0]) / 4


def test_the_penalty_counts_the_undecided() -> None:
    packing, logits = Packing(((1, 3),)), torch.tensor([-9.0, 0.0, 9.0], requires_grad=True)
    for beta in (1.0, 2.0, 20.0):
        _, penalty = soft_round_quantize(torch.zeros(3), logits, torch.ones(1), packing=packing, **GRID, beta=beta)
        assert penalty.item() == 1.0
        assert torch.autograd.grad(penalty, logits)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stretch", [(-0.1, 1.1), (0.0, 1.0), (-0.5, 1.2)])
def test_at_the_initial_logits_rounding_changes_nothing(stretch: tuple[float, float], dtype: torch.dtype) -> None:
    packing = Packing(SHAPES)
    weights = random(packing.total, factor=0.5).to(dtype)
    weights[:4] = torch.tensor([0.0, 0.25, -0.5, 0.75])  # codes themselves
    scale = torch.full((packing.rows,), 0.25)
    logits = initial_logits(weights, scale, packing=packing, stretch=stretch)
    assert logits.isfinite().all()
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    y, _ = soft_round_quantize(weights, logits, scale, packing=packing, quant_min=-100, quant_max=100, stretch=stretch)
    torch.testing.assert_close(y, weights, atol=1e-6, rtol=torch.finfo(dtype).eps)


def test_hard_rounding_from_the_initial_logits_is_to_the_nearest() -> None:
    packing, weights, scale = Packing(((2, 100),)), random(200), torch.tensor([0.3, 0.7])
    y, penalty = soft_round_quantize(
        weights, initial_logits(weights, scale, packing=packing), scale, packing=packing, **GRID, hard=True
    )
    zero = torch.zeros(2, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weights.reshape(2, 100), scale, zero, 0, -8, 7)
    assert torch.equal(y, expected.flatten())
    assert penalty.item() == 0


def test_hard_there_is_no_gradient_and_soft_none_but_of_the_logits() -> None:
    packing, leaves = (
        Packing(((1, 3),)),
        [random(3).requires_grad_(), random(3).requires_grad_(), torch.ones(1).requires_grad_()],
    )
    beta = torch.tensor(2.0, requires_grad=True)
    hard, penalty = soft_round_quantize(*leaves, packing=packing, **GRID, beta=beta, hard=True)
    assert not hard.requires_grad
    assert not penalty.requires_grad
    soft, penalty = soft_round_quantize(*leaves, packing=packing, **GRID, beta=beta)
    (soft.sum() + penalty).backward()
    assert [leaf.grad is not None for leaf in (*leaves, beta)] == [False, True, False, False]


def test_descent_on_the_penalty_makes_up_its_mind_where_it_already_leans() -> None:
    packing, weights, scale = Packing(((1, 200),)), random(200), torch.tensor([0.5])
    start = initial_logits(weights, scale, packing=packing)
    logits, beta = start.clone().requires_grad_(), torch.tensor(20.0)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(300):
        beta.fill_(20 - 18 * step / 299)  # annealed in place
        optimizer.zero_grad()
        y, penalty = soft_round_quantize(weights, logits, scale, packing=packing, **GRID, beta=beta)
        penalty.backward()
        optimizer.step()
    hard, _ = soft_round_quantize(weights, start, scale, packing=packing, **GRID, hard=True)
    decided = start.abs() > 0.1
    assert decided.sum() > 150
    torch.testing.assert_close(y.detach()[decided], hard[decided], rtol=0, atol=1e-3)


def test_nan_stays_nan_whether_in_a_weight_or_in_a_logit() -> None:
    packing, weights, logits = Packing(((1, 2),)), torch.tensor([torch.nan, 1.0]), torch.tensor([0.0, torch.nan])
    for hard in (False, True):
        y, _ = soft_round_quantize(weights, logits, torch.ones(1), packing=packing, **GRID, hard=hard)
        assert y.isnan().all()


def test_packing_and_unpacking_is_the_identity_and_unpacked_are_views() -> None:
    tensors = [random(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    packing = Packing.of(tensors)
    assert packing == Packing(SHAPES)
    assert hash(packing) == hash(Packing(SHAPES))
    assert packing.rows == sum(shape[0] for shape in SHAPES)
    assert packing.total == sum(t.numel() for t in tensors)
    flat = packing.pack(tensors)
    for found, expected in zip(packing.unpack(flat), tensors, strict=True):
        assert torch.equal(found, expected)
        assert found.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_packing_follows_strides_and_gradients() -> None:
    weight = random(4, 6).requires_grad_()
    packing = Packing(((6, 4),))
    flat = packing.pack([weight.t()])
    assert torch.equal(flat.detach(), weight.detach().t().flatten())
    packing.unpack(flat)[0][2].sum().backward()
    expected = torch.zeros(4, 6)
    expected[:, 2] = 1
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)


def test_a_weight_without_rows_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected at least \(rows,\) of every weight, got shapes \(\(2, 3\), \(\)\)"):
        Packing(((2, 3), ()))


def test_other_tensors_than_the_packing_is_for_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"Packing.pack: expected shapes \(\(2, 3\),\), got \(\(3, 2\),\)"):
        Packing(((2, 3),)).pack([torch.zeros(3, 2)])
    with pytest.raises(ShapeError, match=r"Packing.unpack: expected flat of shape \(6,\)"):
        Packing(((2, 3),)).unpack(torch.zeros(5))


@pytest.mark.traces  # a shape check would catch them before we answer
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": torch.zeros(5)}, r"expected weights of shape \(6,\), one for each element of 1 packed weight"),
        ({"logits": torch.zeros(2, 3)}, r"expected logits of shape \(6,\).*got \(2, 3\)"),
        ({"scale": torch.ones(6)}, r"expected scale of shape \(2,\), one for each row of 1 packed.*got \(6,\)"),
        ({"zero_point": torch.zeros(1)}, r"expected zero_point of shape \(2,\)"),
        ({"beta": torch.ones(2)}, r"expected one beta, got shape \(2,\)"),
    ],
)
def test_what_does_not_fit_the_packing_is_refused(changed: dict[str, Tensor], said: str) -> None:
    fitting = {"weights": torch.zeros(6), "logits": torch.zeros(6), "scale": torch.ones(2)}
    with pytest.raises(ShapeError, match=said):
        soft_round_quantize(**{**fitting, **changed}, packing=Packing(((2, 3),)), **GRID)  # type: ignore[arg-type]


@pytest.mark.traces
@pytest.mark.parametrize("hard", [False, True])
def test_compilers_see_it_whole_forward_and_backward(hard: bool) -> None:
    packing = Packing(SHAPES)
    weights, scale = random(packing.total), torch.full((packing.rows,), 0.5)

    def loss(logits: Tensor) -> Tensor:
        y, penalty = soft_round_quantize(weights, logits, scale, packing=packing, **GRID, hard=hard)
        return (y * logits).sum() + penalty

    logits = random(packing.total, seed=1).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(torch.autograd.grad(f(logits), logits) for f in (loss, compiled)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dy", [torch.inf, torch.nan])
def test_what_is_clipped_has_no_gradient_whatever_comes_back(dy: float) -> None:
    packing = Packing(((1, 3),))
    weights, logits = torch.tensor([0.4, 100.0, torch.nan]), torch.zeros(3, requires_grad=True)
    zero_point = torch.tensor([0.0], requires_grad=True)
    y, _ = soft_round_quantize(
        weights, logits, torch.tensor([1.0]), zero_point, packing=packing, quant_min=-8, quant_max=7
    )
    y.backward(torch.tensor([1.0, dy, dy]))
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([0.25 * 1.2, 0, 0])
    assert zero_point.grad is None


def test_a_zero_point_alone_has_no_gradient_to_give() -> None:
    packing, one = Packing(((1, 1),)), torch.ones(1)
    y, penalty = soft_round_quantize(
        one, one, one, one.clone().requires_grad_(), packing=packing, quant_min=-8, quant_max=7
    )
    assert not y.requires_grad
    assert not penalty.requires_grad
