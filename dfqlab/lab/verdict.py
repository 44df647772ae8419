"""What a check found, as a learner reads it: in a page, in a terminal, or read aloud."""

import html
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["passed", "not yet", "wrong"]


@dataclass(frozen=True)
class Verdict:
    """What a check found. Shown under a cell as a sentence and a table, yours beside expected.

    Attributes:
        outcome: passed, not yet, or wrong.
        sentence: what was found.
        hint: what to do about it, if that is known.
        hints: what often goes wrong, if it is not.
        given: the arguments of the drawn case that have no column in the table.
        rows: a header, then a row for each element of the drawn case; "yours" is empty where there is nothing.
    """

    outcome: Outcome
    sentence: str
    hint: str = ""
    hints: tuple[str, ...] = ()
    given: str = field(default="", repr=False)
    rows: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    @property
    def _mark(self) -> str:
        return {"passed": "✓", "not yet": "…", "wrong": "✗"}[self.outcome]

    def __str__(self) -> str:
        widths = [max(len(cell) for cell in column) for column in zip(*self.rows, strict=True)]
        table = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in self.rows]
        looks = [f"  {number}. {hint}" for number, hint in enumerate(self.hints, 1)]
        return "\n".join(
            [
                f"{self._mark} {self.sentence}",
                *([f"Hint: {self.hint}"] if self.hint else []),
                *(["What often goes wrong:", *looks] if looks else []),
                *([f"With {self.given}:"] if self.given else []),
                *table,
            ]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body = self.rows or ((),)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in body)
        header = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in head)
        caption = f"<caption>With {html.escape(self.given)}:</caption>" if self.given else ""
        width = ' style="min-width:34em"' if caption else ""  # of a few short columns, which a caption would break over
        table = f"<table{width}>{caption}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>" if body else ""
        hint = f"<p><b>Hint.</b> {html.escape(self.hint)}</p>" if self.hint else ""
        looks = "".join(f"<li>{html.escape(text)}</li>" for text in self.hints)
        where = f"<details><summary>What often goes wrong</summary><ol>{looks}</ol></details>" if looks else ""
        return f"<p><b>{self._mark} {html.escape(self.sentence)}</b></p>{hint}{table}{where}"
