"""An objective: a weighted sum that says what each of its terms was."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from dfqlab.errors import ConfigurationError
from dfqlab.images import Batch
from dfqlab.objective import ImageTerm, Objective, PreparedTerm, Term, Weighted
from dfqlab.statistics import Layout, Per, Statistics, TeacherOutputs
from dfqlab.synthesis.terms import Alignment, L2Prior, TotalVariation
from dfqlab.teachers import Teacher


@dataclass
class Brightness:
    """The mean pixel, to some power."""

    power: float = 1.0
    per: Per = "batch"
    prepared: list[tuple[str, int]] = field(default_factory=list)

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        self.prepared.append((teacher.name, seed))
        return lambda batch, outputs: batch.images.mean() ** self.power


@pytest.fixture
def teacher() -> Callable[[str], Teacher]:
    def make(name: str) -> Teacher:
        module = nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Teacher.from_module(module, size=(1, 2, 2), mean=(0.5,), std=(0.5,), classes=1, name=name)

    return make


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.full((3, 1, 2, 2), 0.5, requires_grad=True))


@pytest.fixture
def outputs() -> TeacherOutputs:
    one = torch.ones(1)
    return TeacherOutputs(torch.zeros(3, 1), Statistics(one, one, Layout(("0",), (1,)), one, one), None)


def test_the_total_is_the_weighted_sum_and_the_terms_are_told_unweighted(
    teacher: Callable[[str], Teacher], batch: Batch, outputs: TeacherOutputs
) -> None:
    objective = Objective(plain=Brightness(), squared=Weighted(-0.5, Brightness(2)))
    terms = objective.prepare(teacher("a"), seed=0)(batch, outputs)
    total = objective.total(terms)
    assert {name: float(value.detach()) for name, value in terms.items()} == {"plain": 0.5, "squared": 0.25}
    assert float(total.detach()) == 0.5 - 0.5 * 0.25
    total.backward()
    assert batch.images.grad is not None
    torch.testing.assert_close(batch.images.grad, torch.full((3, 1, 2, 2), (1 - 0.5 * 2 * 0.5) / 12))


def test_each_term_is_prepared_once_for_each_teacher_and_knows_the_seed(teacher: Callable[[str], Teacher]) -> None:
    term = Brightness()
    objective = Objective(term=Weighted(2, term))
    for name in ("a", "b"):
        objective.prepare(teacher(name), seed=7)
    assert term.prepared == [("a", 7), ("b", 7)]


def test_what_a_term_measured_of_one_teacher_stays_with_it(teacher: Callable[[str], Teacher], batch: Batch) -> None:
    """One description serves a zoo: the second teacher's target does not replace the first one's."""
    near, far = teacher("near"), teacher("far")
    far.module.get_buffer("0.running_mean").fill_(9)
    objective = Objective(alignment=Alignment(match_input=False))
    prepared = [objective.prepare(t, seed=0) for t in (near, far)]
    zero, one = torch.zeros(1), torch.ones(1)
    outputs = TeacherOutputs(torch.zeros(3, 1), Statistics(zero, one, Layout(("0",), (1,)), zero, one), None)
    assert [float(p(batch, outputs)["alignment"]) for p in prepared] == [0.0, 81.0]


@pytest.mark.parametrize(
    ("terms", "per"),
    [
        ({"a": Brightness()}, "batch"),
        ({"a": Brightness(per="sample")}, "sample"),
        ({"a": Brightness(), "b": Weighted(0.1, Brightness(per="sample"))}, "sample"),
    ],
)
def test_the_finest_statistics_that_a_term_reads_are_read(terms: dict[str, Term | Weighted], per: Per) -> None:
    assert Objective(**terms).per == per


def test_terms_keep_their_order() -> None:
    assert list(Objective(b=Brightness(), a=Brightness()).terms) == ["b", "a"]


def test_an_objective_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs at least one term"):
        Objective()


def test_a_term_of_weight_zero_is_left_out() -> None:
    off = Brightness(3)
    objective = Objective(on=Brightness(), off=Weighted(0, off), smooth=Weighted(0, TotalVariation()))
    assert dict(objective.weights) == {"on": 1.0}
    assert not objective.image_terms
    with pytest.raises(ConfigurationError, match="every term has weight 0: a, b"):
        Objective(a=Weighted(0, off), b=Weighted(0.0, off))


def test_terms_of_images_alone_need_no_teacher() -> None:
    objective = Objective(seen=Brightness(), smooth=Weighted(2.0, TotalVariation("l1")), size=L2Prior())
    assert (list(objective.terms), list(objective.image_terms)) == (["seen"], ["smooth", "size"])
    x = torch.zeros(2, 1, 2, 2)
    x[..., 1, :] = 3.0
    values = objective.of_images(x)
    assert {name: float(value) for name, value in values.items()} == pytest.approx({"smooth": 1.5, "size": 18**0.5})
    assert float(objective.total(values)) == pytest.approx(2 * 1.5 + 18**0.5)


@pytest.mark.traces  # a shape check would catch it before we answer
def test_what_is_no_term_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match="'mean' is no term"):
        Objective(mean=torch.mean)  # type: ignore[arg-type]


def test_our_terms_are_terms() -> None:
    assert isinstance(Alignment(), Term)
    assert isinstance(TotalVariation(), ImageTerm)


def test_a_term_that_returns_no_tensor_is_no_silent_zero(
    teacher: Callable[[str], Teacher], batch: Batch, outputs: TeacherOutputs
) -> None:
    class Broken(Brightness):
        def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
            return lambda batch, outputs: None  # type: ignore[arg-type, return-value]

    objective = Objective(broken=Broken())
    with pytest.raises(TypeError):
        objective.total(objective.prepare(teacher("a"), seed=0)(batch, outputs))
