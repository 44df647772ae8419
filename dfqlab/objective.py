"""An objective is a named, weighted sum of terms, and says what each of them was."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import ConfigurationError
from dfqlab.images import Batch
from dfqlab.statistics import Per, TeacherOutputs
from dfqlab.teachers import Teacher

PreparedTerm = Callable[[Batch, TeacherOutputs], Tensor]
"""A term made ready for one teacher: a scalar for a batch and what the teacher says of it."""


@runtime_checkable
class Term(Protocol):
    """One loss: a description that serves every teacher of a zoo."""

    @property
    def per(self) -> Per:
        """The statistics it reads, of the batch or of each sample."""
        ...

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        """Measure what belongs to this teacher, once; the result is called at every step. States its reduction."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A term and the factor it counts with."""

    weight: float
    term: Term


class Objective:
    """`Objective(alignment=Alignment(), prior=Weighted(0.1, term))`: terms by name, weight 1 unless given."""

    def __init__(self, **terms: Term | Weighted) -> None:
        if not terms:
            raise ConfigurationError("an objective needs at least one term")
        self.terms: Mapping[str, Weighted] = {
            name: term if isinstance(term, Weighted) else Weighted(1.0, term) for name, term in terms.items()
        }

    @property
    def per(self) -> Per:
        """The finest statistics that any term reads; those of the batch follow from them."""
        return "sample" if any(w.term.per == "sample" for w in self.terms.values()) else "batch"

    def prepare(self, teacher: Teacher, *, seed: int) -> "PreparedObjective":
        """Prepare every term for one teacher."""
        return PreparedObjective(
            {name: (w.weight, w.term.prepare(teacher, seed=seed)) for name, w in self.terms.items()}
        )


@dataclass(frozen=True)
class PreparedObjective:
    """The terms of an objective, ready for one teacher."""

    terms: Mapping[str, tuple[float, PreparedTerm]]

    def __call__(self, batch: Batch, outputs: TeacherOutputs) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted sum, and each term unweighted, both still on their device and in their graph."""
        values = {name: term(batch, outputs) for name, (_, term) in self.terms.items()}
        weighted = [self.terms[name][0] * value for name, value in values.items()]
        return torch.stack(weighted).sum(), values
