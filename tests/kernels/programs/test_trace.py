"""What `traced` sees, and what it sees of our programs: every element is read once and written once.

Only where programs are interpreted.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from dfqlab_kernels import BackendError, Packing, layout
from dfqlab_kernels.layout import dense, elementwise_layout, elementwise_tiling
from dfqlab_kernels.programs import learned_step, quantization, soft_round
from dfqlab_kernels.trace import Access, Trace, traced

SHAPES = {
    "contiguous": ((3, 5, 7), (35, 7, 1)),
    "channels_last": ((2, 6, 5, 3), (90, 1, 18, 6)),
    "transposed": ((4, 11, 3), (33, 1, 11)),
    "every second": ((3, 5, 7), (70, 14, 1)),
    "expanded": ((3, 6, 7), (0, 7, 1)),
    "no element": ((0, 5, 3), (15, 3, 1)),
    "scalar": ((), ()),
    "vector": ((71,), (1,)),
    "many rows": ((70, 3), (3, 1)),
}
CASES = [(name, axis) for name, (shape, _) in SHAPES.items() for axis in (None, *range(len(shape)))]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "TILE", 64)
    monkeypatch.setattr(layout, "PROGRAMS", 4)


# --- the tracer


@triton.jit
def _shifted_copy(x_ptr, y_ptr, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(x_ptr + i + 1, mask=i + 1 < n, other=0)
    tl.store(y_ptr + i, x, mask=i < n)


def test_loads_and_stores_are_counted_by_element_and_by_program() -> None:
    x, y = torch.arange(6.0), torch.zeros(6)
    with traced(x=x, y=y) as trace:
        _shifted_copy[(2,)](x, y, 6, TILE=4)
    assert y.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]
    assert trace.accesses == [
        Access((0, 0, 0), "load", "x", (1, 2, 3, 4), 4),
        Access((0, 0, 0), "store", "y", (0, 1, 2, 3), 4),
        Access((1, 0, 0), "load", "x", (5,), 4),  # of what the mask let through alone
        Access((1, 0, 0), "store", "y", (4, 5), 4),
    ]
    assert trace.of("x", "load") == Counter(range(1, 6))
    assert trace.of("x", "store") == Counter()
    assert trace.bytes() == 4 * (5 + 6)
    assert trace.bytes("x") == trace.bytes(direction="load") == 4 * 5
    assert trace.bytes("x", "store") == 0


def test_what_is_not_watched_is_not_seen_and_nothing_is_seen_afterwards() -> None:
    x, y = torch.arange(6.0), torch.zeros(6)
    with traced(y=y) as trace:
        _shifted_copy[(2,)](x, y, 6, TILE=4)
    seen = len(trace.accesses)
    _shifted_copy[(2,)](x, y, 6, TILE=4)
    assert {a.tensor for a in trace.accesses} == {"y"}
    assert len(trace.accesses) == seen


def test_an_error_inside_leaves_nothing_behind() -> None:
    before = interpreter.interpreter_builder.create_masked_load

    def fail() -> None:
        with traced(x=torch.zeros(1)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert interpreter.interpreter_builder.create_masked_load == before


def test_an_element_read_twice_counts_twice_and_a_view_has_indices_of_its_own() -> None:
    base, y = torch.arange(10.0), torch.zeros(6)
    view = base[3:9]
    with traced(view=view, y=y) as trace:
        _shifted_copy[(2,)](view, y, 6, TILE=4)
        _shifted_copy[(2,)](view, y, 6, TILE=4)
        _shifted_copy[(1,)](base, y, 2, TILE=4)  # reads base[1], which lies before the view
    assert trace.of("view", "load") == Counter([*range(1, 6)] * 2 + [-2])


def test_one_watcher_inside_another_sees_what_it_asks_for_and_no_more() -> None:
    x, y = torch.arange(6.0), torch.zeros(6)
    with traced(x=x) as outer:
        with traced(y=y) as inner:
            _shifted_copy[(2,)](x, y, 6, TILE=4)
        _shifted_copy[(2,)](x, y, 6, TILE=4)
    assert inner.of("y", "store") == Counter(range(6))
    assert outer.of("x", "load") == Counter([*range(1, 6)] * 2)


def test_without_the_interpreter_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="TRITON_INTERPRET=1 was not set"), traced():
        pass


# --- our programs


class Watched:
    """A trace that also watches what is allocated while it runs, as "new 0", "new 1", ..."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.new = trace, 0

    def given(self, name: str, tensor: Tensor) -> Tensor:
        """Watched under this name alone."""
        for known in [k for k, t in self.trace.tensors.items() if t is tensor]:
            del self.trace.tensors[known]
            self.new -= known.startswith("new")
        self.trace.tensors[name] = tensor
        return tensor

    def allocated(self, tensor: Tensor) -> Tensor:
        self.trace.tensors[f"new {self.new}"] = tensor
        self.new += 1
        return tensor

    def once(self, tensor: str, direction: Any) -> bool:
        """Whether every element was read (or written) exactly once, and nothing else was."""
        return self.trace.of(tensor, direction) == Counter(range(self.trace.tensors[tensor].numel()))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    empty_like = torch.empty_like
    with traced() as trace:
        found = Watched(trace)
        monkeypatch.setattr(torch, "empty_like", lambda *a, **k: found.allocated(empty_like(*a, **k)))
        yield found
        monkeypatch.undo()


def tensor(name: str) -> Tensor:
    """Dense: what is not is copied first, and the copy is read."""
    shape, stride = SHAPES[name]
    size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if 0 not in shape else 0
    memory = 8 * torch.randn(size + 1, generator=torch.Generator().manual_seed(0))
    return dense(memory.as_strided(shape, stride, 1 if size else 0))


def qparams(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    count = 1 if axis is None else x.shape[axis]
    return torch.full((count,), 0.4), torch.full((count,), 2.0)


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_fake_quantize_reads_and_writes_every_element_once(name: str, axis: int | None, watched: Watched) -> None:
    x = watched.given("x", tensor(name))
    y, inside = quantization.forward(x, *qparams(x, axis), axis, -8, 7, pack=True)
    assert watched.once("x", "load")
    assert watched.once("new 0", "store")
    assert watched.trace.bytes() == 2 * x.nbytes

    watched.trace.accesses.clear()
    dy = watched.given("dy", x.clone())
    watched.given("inside", inside)
    quantization.backward_from_bits(dy, inside, axis, list(y.stride()))
    assert watched.once("dy", "load")
    assert watched.once("new 1", "store")
    if x.numel():
        assert watched.once("inside", "load")
        _, lies = elementwise_layout(x, axis)
        tiling = elementwise_tiling(lies)
        assert inside.numel() == tiling.programs(lies) * tiling.tile / 32


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_the_other_backward_reads_x_and_the_gradient_once(name: str, axis: int | None, watched: Watched) -> None:
    x = watched.given("x", tensor(name))
    dy = watched.given("dy", x.clone())
    quantization.backward_from_input(dy, x, *qparams(x, axis), axis, -8, 7)
    assert watched.once("x", "load")
    assert watched.once("dy", "load")
    assert watched.once("new 0", "store")
    assert watched.trace.bytes() == 3 * x.nbytes


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_three_gradients_cost_one_read_of_x_and_one_of_the_gradient(
    name: str, axis: int | None, watched: Watched
) -> None:
    x = watched.given("x", tensor(name))
    dy = watched.given("dy", x.clone())
    learned_step.backward(dy, x, *qparams(x, axis), axis, -8, 7, 1.0)
    assert watched.once("x", "load")
    assert watched.once("dy", "load")
    assert watched.once("new 0", "store")
    assert watched.trace.bytes() == 3 * x.nbytes


def test_soft_rounding_reads_and_writes_every_element_of_all_tensors_once(watched: Watched) -> None:
    packing = Packing(((3, 2, 3, 3), (5,), (2, 77), (0, 4), (1, 1)))
    generator = torch.Generator().manual_seed(0)
    flat = [
        watched.given(name, torch.randn(packing.total, generator=generator)) for name in ("weights", "logits", "dy")
    ]
    scale, beta, rest = torch.full((packing.rows,), 0.4), torch.tensor(3.0), (packing.sizes, -8, 7, -0.1, 1.1)
    soft_round.forward(*flat[:2], scale, None, beta, *rest)
    assert watched.once("weights", "load")
    assert watched.once("logits", "load")
    assert watched.once("new 0", "store")
    watched.trace.accesses.clear()
    soft_round.backward(flat[2], torch.tensor(1.0), *flat[:2], scale, None, beta, *rest)
    for name in ("weights", "logits", "dy"):
        assert watched.once(name, "load")
    assert watched.once("new 1", "store")
