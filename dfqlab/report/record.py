"""The numbers of a report as plain JSON values."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dfqlab.report.content import RunReport

FORMAT = 1


def record(content: RunReport) -> dict[str, Any]:
    """Everything that the page shows except pictures; a number that is not finite, or was not measured, is None."""
    facts = {field.name: getattr(content, field.name) for field in dataclasses.fields(content)}
    pictures = facts.pop("pictures")
    facts["batch_norms"] = {"layers": pictures.bn_layers, "distances": pictures.bn_distances}
    facts["contradictions"] = content.contradictions
    return {"format": FORMAT, "sentence": content.sentence, **{name: _plain(value) for name, value in facts.items()}}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
