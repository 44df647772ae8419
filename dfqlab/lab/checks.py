"""Exercises: a task, an answer that the library has, and a check that says what a learner's function does instead."""

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfqlab.lab import bounded
from dfqlab.lab.verdict import Verdict

TIME_LIMIT = 5.0

_RELATIVE, _ABSOLUTE = 1e-4, 1e-5
_FEW = 8  # numbers that a line has room for
_LONGEST = 300
_WORTH_A_COPY = 1 << 16


@dataclass(frozen=True)
class Hint:
    """What to tell somebody who makes a certain mistake.

    Attributes:
        text: the sentence.
        mistake: a function that makes it; a learner's function that does the same on every case is told the sentence.
    """

    text: str
    mistake: Callable[..., Tensor]


class Complaint(Exception):
    """What is wrong with a function, found while it was tried: a sentence, and what to do about it."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.hint = hint


class CannotTry(Exception):
    """Why nobody's function can be tried on this machine: a sentence."""


@dataclass(frozen=True)
class Exercise:
    """A function to be written.

    Attributes:
        id: "LESSON.NAME".
        answer: what the library does. Its parameters are those of the stub.
        cases: arguments to try, on tensors that a reader can hold in the head; the first that goes wrong is drawn.
        drawn: the parameters shown beside the results; each has an element for each element of the result.
        hints: for the mistakes that people make, three or more.
        library: where the library does it, as a dotted name.
        attempt: takes a learner's function and the arguments of a case, and gives the result; None calls it. May raise
            a `Complaint`, or `CannotTry`.
    """

    id: str
    answer: Callable[..., Tensor]
    cases: tuple[tuple[Any, ...], ...]
    drawn: tuple[str, ...]
    hints: tuple[Hint, ...]
    library: str
    attempt: Callable[[Callable[..., Any], tuple[Any, ...]], Any] | None = None


def examine(exercise: Exercise, yours: Any, *, time_limit: float = TIME_LIMIT) -> Verdict:
    """Try a learner's function on the cases of an exercise. Never raises, and keeps nothing.

    Args:
        exercise: what was asked.
        yours: whatever the learner has; a function, if all is well.
        time_limit: seconds that it may take for one case.
    """
    try:
        return _examine(exercise, yours, time_limit)
    except Exception as error:  # a result that Tensor's own methods fail on, a signature that cannot be read
        return Verdict("wrong", f"What it returns cannot be compared with a tensor: {_said(error)}", **_drawn(exercise))


def _examine(exercise: Exercise, yours: Any, time_limit: float) -> Verdict:
    if not callable(yours) or inspect.isclass(yours):
        what = f"the class {yours.__name__}" if inspect.isclass(yours) else f"an object of type {type(yours).__name__}"
        return Verdict("wrong", f"Expected a function, got {what}. Pass the function's name, without parentheses.")
    if exercise.attempt is not None:
        yours = getattr(yours, "fn", yours)  # under @triton.jit
    found: list[Tensor] = []
    for case in exercise.cases:
        result = _try(exercise, yours, case, time_limit)
        if isinstance(result, Verdict):
            return result
        found.append(result)
    expected = [exercise.answer(*_copied(case)) for case in exercise.cases]
    wrong = next((number for number, pair in enumerate(zip(found, expected, strict=True)) if not _equal(*pair)), None)
    if wrong is None:
        said = f"Right, in all {len(expected)} cases. The library does it in {exercise.library}."
        return Verdict("passed", said, **_drawn(exercise, found[0]))
    drawn = _drawn(exercise, found[wrong], wrong)
    difference = _difference(exercise, exercise.cases[wrong], found[wrong], expected[wrong])
    for hint in exercise.hints:
        if all(map(_equal, found, [hint.mistake(*_copied(case)) for case in exercise.cases])):
            return Verdict("wrong", difference, hint.text, **drawn)
    return Verdict("wrong", difference, hints=tuple(hint.text for hint in exercise.hints), **drawn)


def _try(exercise: Exercise, yours: Callable[..., Any], case: tuple[Any, ...], time_limit: float) -> Tensor | Verdict:
    """What the function gives for one case, or the verdict where it gives nothing to compare."""
    parameters = list(inspect.signature(exercise.answer).parameters)
    if (takes := _other_parameters(yours, case)) is not None:
        return Verdict("wrong", f"Your function takes {takes}; expected ({', '.join(parameters)}).", **_drawn(exercise))
    arguments = _copied(case)
    if exercise.attempt is None:
        call = bounded.call(yours, arguments, time_limit)
    else:
        call = bounded.call(exercise.attempt, (yours, arguments), time_limit)
    if call.end in ("stopped", "running"):
        fate = (
            "and was stopped. Is there a loop that never ends?"
            if call.end == "stopped"
            else "and does not let itself be stopped. Kernel > Restart Kernel does; then look for what it waits for."
        )
        return Verdict("wrong", f"Your function was not back after {time_limit:g} s, {fate}", **_drawn(exercise))
    if isinstance(call.error, Complaint):
        number = next(number for number, known in enumerate(exercise.cases) if known is case)
        return Verdict("wrong", str(call.error), call.error.hint, **_drawn(exercise, number=number))
    if isinstance(call.error, CannotTry):
        return Verdict("not yet", f"Not checked: {call.error}. What it should give:", **_drawn(exercise))
    if call.error is not None:
        return _raised(exercise, yours, call.error)
    changed = [p for p, a, b in zip(parameters, arguments, case, strict=True) if not _same(a, b)]
    if changed:
        sentence = f"It changes its input {changed[0]!r} in place; work on a new tensor, such as {changed[0]}.clone()."
    elif call.value is None:
        sentence = "It returns None. Is there a return at its end?"
    elif not isinstance(call.value, Tensor):
        sentence = (
            f"Its result is of type {type(call.value).__name__}; expected a tensor. "
            "torch.tensor(...) makes one of numbers, torch.stack(...) one of tensors."
        )
    elif call.value.layout != torch.strided or call.value.device.type != "cpu":
        sentence = (
            f"Its result is a {call.value.layout} tensor on the device {call.value.device}; "
            "expected an ordinary one, on the CPU."
        ).replace("torch.", "")
    else:
        result = call.value.detach()
        # It may be a buffer that the next case overwrites; and far too large for a copy.
        return result.clone() if result.numel() <= _WORTH_A_COPY else result
    return Verdict("wrong", sentence, **_drawn(exercise))


def _other_parameters(yours: Callable[..., Any], case: tuple[Any, ...]) -> str | None:
    """The parameters of a function that cannot be called with a case; None if it can, or if only calling it tells."""
    try:
        signature = inspect.signature(yours)
    except Exception:  # a built-in has none, and an object may lie about its own
        return None
    try:
        signature.bind(*case)
    except TypeError:
        bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
        return str(inspect.Signature(bare))
    return None


def _raised(exercise: Exercise, yours: Callable[..., Any], error: BaseException) -> Verdict:
    code = getattr(inspect.unwrap(yours), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line or "" for frame in frames if code is not None and frame.filename == code.co_filename]
    line, said = lines[-1] if lines else "", _said(error)
    # torch raises NotImplementedError too, where it has no kernel for a type.
    if isinstance(error, NotImplementedError) and (line.startswith("raise") or said == type(error).__name__):
        name = exercise.id.partition(".")[2]
        return Verdict("not yet", f"Not yet: {name} is still to be written. What it should give:", **_drawn(exercise))
    return Verdict("wrong", f"It raised {said}{f', at “{line}”' if line else ''}.", **_drawn(exercise))


def _said(error: BaseException) -> str:
    """The kind of an error and its first words."""
    try:
        words = " ".join(str(error).split())
    except Exception:
        words = ""
    words = words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
    return f"{type(error).__name__}: {words.rstrip('.')}" if words else type(error).__name__


def _difference(exercise: Exercise, case: tuple[Any, ...], yours: Tensor, right: Tensor) -> str:
    if yours.shape != right.shape:
        return f"Its result has the shape {tuple(yours.shape)}; expected {tuple(right.shape)}."
    if yours.dtype != right.dtype:
        return f"The values have the type {_dtype(yours)}; expected {_dtype(right)}; .to({right.dtype}) converts them."
    if yours.isnan().any() and not right.isnan().any():
        return f"{int(yours.isnan().sum())} of {yours.numel()} values are NaN."
    wrong = ~torch.isclose(yours.double(), right.double(), rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True).flatten()
    at, count = int(wrong.nonzero()[0]), int(wrong.sum())
    which = f"element {at}" if right.dim() else "the result"
    given = ", ".join(f"{name} = {_number(value)}" for name, value in _elements(exercise, case, at))
    return (
        f"{count} of {right.numel()} values {'differs' if count == 1 else 'differ'}: {which} is "
        f"{_number(yours.flatten()[at])}, expected {_number(right.flatten()[at])}{f' for {given}' if given else ''}."
    )


def _drawn(exercise: Exercise, yours: Tensor | None = None, number: int = 0) -> dict[str, Any]:
    """A case, drawn: the inputs that go with each element, what is expected, and what came."""
    case = exercise.cases[number]
    expected = exercise.answer(*_copied(case))
    if yours is not None and yours.numel() != expected.numel():
        yours = None
    rows: list[tuple[str, ...]] = [(*exercise.drawn, "expected", "yours", "")]
    for at, right in enumerate(expected.flatten()):
        given = [_number(value) for _, value in _elements(exercise, case, at)]
        if yours is None:
            rows.append((*given, _number(right), "", ""))
        else:
            own = yours.flatten()[at]
            rows.append((*given, _number(right), _number(own), "✓" if _close(own, right) else "≠"))
    return {"given": _given(exercise, case), "rows": tuple(rows)}


def _elements(exercise: Exercise, case: tuple[Any, ...], at: int) -> list[tuple[str, Any]]:
    given = dict(zip(inspect.signature(exercise.answer).parameters, case, strict=True))
    return [(name, given[name].flatten()[at]) for name in exercise.drawn]


def _given(exercise: Exercise, case: tuple[Any, ...]) -> str:
    """The arguments that are not drawn, as an assignment each."""
    given = zip(inspect.signature(exercise.answer).parameters, case, strict=True)
    return ", ".join(f"{name} = {_written(value)}" for name, value in given if name not in exercise.drawn)


def _written(value: Any) -> str:
    if isinstance(value, Tensor):
        return _listed(value.tolist()) if value.numel() <= _FEW else f"a tensor of shape {tuple(value.shape)}"
    return _number(value)


def _listed(values: Any) -> str:
    return f"[{', '.join(map(_listed, values))}]" if isinstance(values, list) else _number(values)


def _number(value: Any) -> str:
    value = value.item() if isinstance(value, Tensor) else value
    return str(value) if isinstance(value, bool) else f"{value + 0:.4g}"  # no minus before a zero


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _copied(case: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in case)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.is_complex() or b.is_complex():
        a, b = a.to(torch.complex128), b.to(torch.complex128)
    else:
        a, b = a.double(), b.double()
    return torch.allclose(a, b, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and _close(a, b)


def _same(a: Any, b: Any) -> bool:
    """Whether an argument is as it was before the call."""
    return bool(torch.equal(a, b)) if isinstance(a, Tensor) else bool(a == b)
