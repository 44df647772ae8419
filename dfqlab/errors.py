"""Errors of dfqlab. Each says what was expected, what came and what to try."""

import difflib
from collections.abc import Iterable


class DfqlabError(Exception):
    """Any error that dfqlab raises on purpose."""


class ConfigurationError(DfqlabError, ValueError):
    """An option or a name that does not exist, or a value outside its range."""


class TeacherError(DfqlabError, ValueError):
    """A network that cannot serve as a teacher, or not for what was asked."""


class DataError(DfqlabError, ValueError):
    """Images or labels of the wrong shape, type or range, or a source with nothing in it."""


class SynthesisError(DfqlabError, ArithmeticError):
    """A loss that is no number any more. `images` holds what there was before, a SyntheticSet marked partial."""

    def __init__(self, message: str, images: object = None) -> None:
        super().__init__(message)
        self.images = images


class QuantizationError(DfqlabError, ValueError):
    """A network or a specification that cannot be quantized."""


class CheckpointError(DfqlabError, ValueError):
    """A file that is not what it should be: truncated, foreign, newer, or a pickle."""


class OutputError(DfqlabError, OSError):
    """A place that cannot be written, or holds another run's results."""


class DeploymentError(DfqlabError, RuntimeError):
    """A model that cannot be exported, or a runtime that cannot execute it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known names nearest to `name` as the end of a sentence, the first twenty where none is near.

    >>> did_you_mean("zeroc", ["zeroq", "dsg"])
    "did you mean 'zeroq'?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(repr(n) for n in near)}?"
    return f"known: {', '.join(known[:20])}" + (f" and {len(known) - 20} more" if len(known) > 20 else "")
