"""`soft_round_quantize` in Triton: held to the definition in float64, and where it is hard, to torch's own op."""

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from dfqlab_kernels import Packing, backend, initial_logits, layout, soft_round_quantize
from dfqlab_kernels.programs.soft_round import table_of
from dfqlab_kernels.soft_round import _hard_round, _soft_round, _soft_round_backward

DTYPES = [torch.float32, torch.float16, torch.float64]
PACKING = Packing(((3, 2, 3, 3), (5,), (2, 77), (0, 4), (4, 0), (1, 1)))


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of less than a program and of several, for few elements."""
    monkeypatch.setattr(layout, "TILE", 32)


def normal(generator: torch.Generator, count: int, factor: float = 2.0) -> Tensor:
    return factor * torch.randn(count, generator=generator, dtype=torch.float64)


class Given:
    """Weights, logits, scales and zero points of `PACKING`, in some dtype."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> None:
        self.weights = normal(generator, PACKING.total).to(dtype).to(device)
        self.logits = normal(generator, PACKING.total).to(dtype).to(device).requires_grad_()
        self.scale = (0.3 + torch.rand(PACKING.rows, generator=generator)).to(device)
        self.zero_point = torch.randint(-3, 4, (PACKING.rows,), generator=generator).to(device)
        self.dy = normal(generator, PACKING.total).to(dtype).to(device)

    def __call__(self, name: str = "triton", *, dpenalty: float = 0.7, **choice: Any) -> list[Tensor]:
        """y, the penalty, and the gradient of the logits; in float64 for the reference."""
        tensors = [self.weights, self.logits.detach(), self.scale, self.dy]
        if name == "reference":
            tensors = [t.double() for t in tensors]
        weights, logits, scale, dy = tensors
        logits = logits.clone().requires_grad_()
        arguments: dict[str, Any] = {"quant_min": -4, "quant_max": 3, "beta": 3.5, **choice}
        with backend(name):  # type: ignore[arg-type]
            y, penalty = soft_round_quantize(weights, logits, scale, self.zero_point, packing=PACKING, **arguments)
        ((y * dy).sum() + dpenalty * penalty).backward()
        assert logits.grad is not None
        return [y.detach(), penalty.detach(), logits.grad]


@pytest.mark.parametrize(
    "choice", [{}, {"beta": 20.0}, {"beta": 2}, {"stretch": (0.0, 1.0)}, {"stretch": (-0.3, 1.2)}, {"quant_max": 0}]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_penalty_and_gradient_agree_with_float64(
    dtype: torch.dtype, choice: dict[str, Any], device: torch.device, generator: torch.Generator
) -> None:
    given = Given(generator, dtype, device)
    tolerance = {torch.float16: 3e-3, torch.float32: 5e-6, torch.float64: 1e-13}[dtype]
    y, penalty, dlogits = given(**choice)
    assert (y.dtype, dlogits.dtype) == (dtype, dtype)
    assert penalty.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for found, expected in zip((y, penalty, dlogits), given("reference", **choice), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert (dlogits != 0).any()


@pytest.mark.parametrize("dpenalty", [0.0, 1.0])
def test_each_of_the_two_results_has_a_gradient_of_its_own(
    dpenalty: float, device: torch.device, generator: torch.Generator
) -> None:
    given = Given(generator, torch.float64, device)
    if dpenalty:
        given.dy.zero_()
    found, expected = given(dpenalty=dpenalty)[2], given("reference", dpenalty=dpenalty)[2]
    assert (found != 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_gradient_agrees_with_finite_differences(device: torch.device, generator: torch.Generator) -> None:
    packing = Packing(((2, 3),))
    weights, logits = normal(generator, 6).to(device), normal(generator, 6).to(device).requires_grad_()
    scale = torch.tensor([0.5, 0.8], dtype=torch.float64, device=device)

    def f(v: Tensor) -> tuple[Tensor, Tensor]:
        return soft_round_quantize(weights, v, scale, packing=packing, quant_min=-8, quant_max=7, beta=3.0)

    assert torch.autograd.gradcheck(f, (logits,))


def test_no_zero_point_is_zero(device: torch.device, generator: torch.Generator) -> None:
    given = Given(generator, torch.float32, device)
    arguments: dict[str, Any] = {"packing": PACKING, "quant_min": -4, "quant_max": 3}
    none, zero = (
        soft_round_quantize(given.weights, given.logits, given.scale, z, **arguments)[0]
        for z in (None, torch.zeros_like(given.zero_point))
    )
    assert torch.equal(none, zero)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_is_the_definition_bit_for_bit_without_penalty_or_gradient(
    dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    given, results = Given(generator, dtype, device), []
    for name in ("triton", "reference"):
        with backend(name):  # type: ignore[arg-type]
            y, penalty = soft_round_quantize(
                given.weights, given.logits, given.scale, given.zero_point,
                packing=PACKING, quant_min=-4, quant_max=3, hard=True,
            )  # fmt: skip
        assert penalty.item() == 0
        assert not y.requires_grad
        assert not penalty.requires_grad
        results.append(y)
    assert torch.equal(*results)


def test_hard_rounding_to_the_nearest_is_torchs_own_fake_quantization(
    device: torch.device, generator: torch.Generator
) -> None:
    packing = Packing(((3, 50),))
    weights, scale = normal(generator, 150).float(), torch.tensor([0.3, 0.5, 0.9])
    point = torch.tensor([0, 3, 7], dtype=torch.int32)
    logits = initial_logits(weights.to(device), scale.to(device), packing=packing)
    y, _ = soft_round_quantize(
        weights.to(device), logits, scale.to(device), point.to(device),
        packing=packing, quant_min=0, quant_max=7, hard=True,
    )  # fmt: skip
    expected = torch.fake_quantize_per_channel_affine(weights.reshape(3, 50), scale, point, 0, 0, 7)
    assert torch.equal(y.cpu(), expected.flatten())


def test_settled_logits_round_softly_as_hard_and_cost_nothing(device: torch.device, generator: torch.Generator) -> None:
    given = Given(generator, torch.float32, device)
    logits = torch.where(given.logits > 0, 1e4, -1e4).requires_grad_()  # far, and no overflow on the way
    arguments: dict[str, Any] = {"packing": PACKING, "quant_min": -4, "quant_max": 3}
    soft, penalty = soft_round_quantize(given.weights, logits, given.scale, given.zero_point, **arguments)
    hard, _ = soft_round_quantize(given.weights, logits, given.scale, given.zero_point, **arguments, hard=True)
    (soft.sum() + penalty).backward()
    assert torch.equal(soft.detach(), hard)
    assert penalty.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("hard", [False, True])
def test_nan_stays_nan_and_the_infinite_clips(hard: bool, device: torch.device) -> None:
    packing = Packing(((1, 5),))
    weights = torch.tensor([torch.nan, 1.2, torch.inf, -torch.inf, 1e30], device=device)
    logits = torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0], device=device)
    y, _ = soft_round_quantize(
        weights, logits, torch.ones(1, device=device), packing=packing, quant_min=-8, quant_max=7, hard=hard
    )
    assert y[:2].isnan().all()
    assert y[2:].tolist() == [7.0, -8.0, 7.0]


@pytest.mark.parametrize(
    ("stretch", "quant_min", "quant_max"),
    [((-1.0, 1.0), -8, 7), ((0.0, 2.0), -8, 7), ((-1.0, 3.0), 1, 7), ((-1.0, 3.0), -8, 1)],
    ids=["h is 0", "h is 1", "y is the first code", "y is the last code"],
)
def test_at_the_very_ends_the_gradient_passes(
    stretch: tuple[float, float], quant_min: int, quant_max: int, device: torch.device
) -> None:
    packing, logits = Packing(((1, 1),)), torch.zeros(1, device=device, requires_grad=True)
    y, _ = soft_round_quantize(
        torch.zeros(1, device=device), logits, torch.ones(1, device=device), packing=packing,
        quant_min=quant_min, quant_max=quant_max, stretch=stretch,
    )  # fmt: skip
    assert y.item() == (stretch[0] + stretch[1]) / 2
    assert torch.autograd.grad(y.sum(), logits)[0].item() == (stretch[1] - stretch[0]) / 4


def test_undecided_logits_have_a_penalty_each_and_no_push(device: torch.device) -> None:
    """At h = 1/2 the penalty is at its top: 1, with slope 0, also for the β = 1 of a tent."""
    packing = Packing(((2, 20),))
    logits = torch.zeros(40, device=device, requires_grad=True)
    for beta in (1.0, 2.0, 20.0):
        _, penalty = soft_round_quantize(
            torch.zeros(40, device=device), logits, torch.ones(2, device=device),
            packing=packing, quant_min=-8, quant_max=7, beta=beta,
        )  # fmt: skip
        assert penalty.item() == 40
        (gradient,) = torch.autograd.grad(penalty, logits)
        assert not gradient.any()


def test_beta_may_be_a_tensor_which_changes_in_place_and_has_no_gradient(
    device: torch.device, generator: torch.Generator
) -> None:
    given = Given(generator, torch.float32, device)
    beta = torch.tensor(3.5, device=device, requires_grad=True)
    for value in (3.5, 2.0):
        with torch.no_grad():
            beta.fill_(value)
        for a, b in zip(given(beta=beta), given(beta=value), strict=True):
            assert torch.equal(a, b)
    assert beta.grad is None


def test_the_same_call_gives_the_same_bits_also_where_determinism_is_demanded(
    device: torch.device, generator: torch.Generator
) -> None:
    given = Given(generator, torch.float32, device)
    first = given()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(9):
            assert all(torch.equal(a, b) for a, b in zip(first, given(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_flat_tensors_need_not_be_contiguous(device: torch.device, generator: torch.Generator) -> None:
    given = Given(generator, torch.float32, device)
    expected = given()
    given.weights = given.weights.repeat_interleave(2)[::2]
    given.logits = given.logits.detach().repeat_interleave(2)[::2]
    given.scale = given.scale.repeat_interleave(3)[::3]
    given.zero_point = given.zero_point.repeat_interleave(3)[::3]
    assert all(torch.equal(a, b) for a, b in zip(given(), expected, strict=True))


def test_nothing_packed_is_nothing_to_do(device: torch.device) -> None:
    packing, empty = Packing(((0, 3),)), torch.zeros(0, device=device, requires_grad=True)
    y, penalty = soft_round_quantize(empty, empty, empty.detach(), packing=packing, quant_min=0, quant_max=7)
    assert y.shape == (0,)
    assert penalty.item() == 0
    (y.sum() + penalty).backward()
    assert empty.grad is not None


@pytest.mark.parametrize("tile", [32, 64, 2048])
def test_the_table_gives_every_element_to_one_program_and_knows_its_row(tile: int) -> None:
    owner, row_of = torch.zeros(PACKING.total, dtype=torch.int64), torch.full((PACKING.total,), -1)
    for begin, count, row, phase, length in table_of(tuple(PACKING.sizes), torch.device("cpu"), tile).tolist():
        assert 0 < count <= tile
        lanes = torch.arange(count)
        owner[begin + lanes] += 1
        row_of[begin + lanes] = row + (phase + lanes) // length
    rows, lengths = torch.tensor(PACKING.sizes).reshape(-1, 2).unbind(1)
    expected = torch.arange(PACKING.rows).repeat_interleave(lengths.repeat_interleave(rows))
    assert torch.equal(owner, torch.ones_like(owner))
    assert torch.equal(row_of, expected)


def test_the_table_is_built_once(device: torch.device) -> None:
    one, two = (table_of(tuple(Packing(((3, 5), (2, 2))).sizes), device, 64) for _ in range(2))
    assert one is two


# --- what torch, its compilers and its checks ask of an op


@pytest.mark.traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
def test_every_op_keeps_the_promises_of_a_custom_op(device: torch.device, generator: torch.Generator) -> None:
    given, beta = Given(generator, torch.float32, device), torch.tensor(3.0, device=device)
    for zero_point in (given.zero_point, None):
        tensors = (given.weights, given.logits, given.scale, zero_point)
        rest = (PACKING.sizes, -4, 3)
        torch.library.opcheck(_soft_round, (*tensors, beta, *rest, -0.1, 1.1))
        torch.library.opcheck(_hard_round, (given.weights, given.logits.detach(), given.scale, zero_point, *rest))
        fixed = (given.weights, given.logits.detach(), given.scale, zero_point)
        torch.library.opcheck(_soft_round_backward, (given.dy, beta, *fixed, beta, *rest, -0.1, 1.1))


@pytest.mark.traces
@pytest.mark.parametrize("hard", [False, True])
def test_a_compiler_sees_it_whole(hard: bool, device: torch.device, generator: torch.Generator) -> None:
    given = Given(generator, torch.float32, device)
    beta = torch.tensor(3.5, device=device)

    def loss(logits: Tensor) -> Tensor:
        y, penalty = soft_round_quantize(
            given.weights, logits, given.scale, given.zero_point,
            packing=PACKING, quant_min=-4, quant_max=3, beta=beta, hard=hard,
        )  # fmt: skip
        return (y * given.dy * logits).sum() + 0.7 * penalty

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for f in (torch.compile(loss, backend=counter, fullgraph=True),) * 2:
        mine, expected = (torch.autograd.grad(g(given.logits), given.logits) for g in (f, loss))
        assert torch.equal(*mine, *expected)
        beta.fill_(2.0)
    assert counter.frame_count == 1


def test_the_gradient_reaches_logits_alone_and_what_is_saved_is_what_came(
    device: torch.device, generator: torch.Generator
) -> None:
    given, saved = Given(generator, torch.float32, device), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.nbytes)
        return tensor

    weights, scale = given.weights.requires_grad_(), given.scale.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = soft_round_quantize(
            weights, given.logits, scale, given.zero_point, packing=PACKING, quant_min=-4, quant_max=3
        )
    assert sum(saved) == sum(t.nbytes for t in (weights, given.logits, scale, given.zero_point)) + 4  # β
    y.sum().backward()
    assert weights.grad is None
    assert scale.grad is None
    y, penalty = soft_round_quantize(weights, given.logits.detach(), scale, packing=PACKING, quant_min=-4, quant_max=3)
    assert not y.requires_grad
    assert not penalty.requires_grad


def test_autocast_leaves_the_dtype_alone(device: torch.device, generator: torch.Generator) -> None:
    given = Given(generator, torch.float32, device)
    expected = given()
    with torch.autocast(device.type, torch.bfloat16):
        found = given()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
