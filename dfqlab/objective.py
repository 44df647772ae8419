"""An objective is a named, weighted sum of terms, and says what each of them was."""

import re
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
    """A loss of what a teacher says of images: a description that serves every teacher of a zoo."""

    @property
    def per(self) -> Per:
        """The statistics it reads, of the batch or of each sample."""
        ...

    def prepare(self, teacher: Teacher, *, seed: int) -> PreparedTerm:
        """Measure what belongs to this teacher, once; the result is called at every step. States its reduction."""
        ...


@runtime_checkable
class ImageTerm(Protocol):
    """A loss of the images alone, such as their total variation."""

    def of_images(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        """The scalar of images as they are before any augmentation or mixing, normalised: 0 is the mean colour."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A term and the factor it counts with."""

    weight: float
    term: Term | ImageTerm


class Objective:
    """`Objective(alignment=Alignment(), smooth=Weighted(0.1, TotalVariation()))`: terms by name, weight 1 if not given.

    A term of weight 0 is left out: it costs nothing.

    Attributes:
        weights: of all terms by name, those of a teacher's outputs first.
        terms: those that read what a teacher says.
        image_terms: those that read the images alone.
    """

    def __init__(self, **terms: Term | ImageTerm | Weighted) -> None:
        if not terms:
            raise ConfigurationError("an objective needs at least one term")
        given = {name: t if isinstance(t, Weighted) else Weighted(1.0, t) for name, t in terms.items()}
        weighted = {name: w for name, w in given.items() if w.weight != 0}
        if not weighted:
            raise ConfigurationError(f"every term has weight 0: {', '.join(given)}")
        self.terms: Mapping[str, Term] = {n: w.term for n, w in weighted.items() if isinstance(w.term, Term)}
        self.image_terms: Mapping[str, ImageTerm] = {
            n: w.term for n, w in weighted.items() if isinstance(w.term, ImageTerm)
        }
        if strange := [n for n in weighted if n not in self.terms and n not in self.image_terms]:
            raise ConfigurationError(f"{strange[0]!r} is no term: it has neither prepare() and per, nor of_images()")
        self.weights: Mapping[str, float] = {n: weighted[n].weight for n in (*self.terms, *self.image_terms)}

    @property
    def description(self) -> dict[str, str]:
        """Each term with its weight and its settings in words, the same in every process."""
        terms = {**self.terms, **self.image_terms}
        words = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(term)) for name, term in terms.items()}
        return {name: f"{self.weights[name]} {word}" for name, word in words.items()}

    @property
    def per(self) -> Per:
        """The finest statistics that any term reads; those of the batch follow from them."""
        return "sample" if any(term.per == "sample" for term in self.terms.values()) else "batch"

    def prepare(self, teacher: Teacher, *, seed: int) -> "PreparedObjective":
        """Prepare for one teacher every term that reads what a teacher says."""
        return PreparedObjective({name: term.prepare(teacher, seed=seed) for name, term in self.terms.items()})

    def of_images(self, x: Float[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Each term of the images alone, unweighted."""
        return {name: term.of_images(x) for name, term in self.image_terms.items()}

    def total(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The weighted sum of terms by name (MixMix, eq. 3)."""
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()


@dataclass(frozen=True)
class PreparedObjective:
    """The terms of an objective that read a teacher's outputs, ready for one teacher."""

    terms: Mapping[str, PreparedTerm]

    def __call__(self, batch: Batch, outputs: TeacherOutputs) -> dict[str, Tensor]:
        """Each term, unweighted."""
        return {name: term(batch, outputs) for name, term in self.terms.items()}
