"""One paper, one file; and the way to call any of them by its name."""

import importlib
from collections.abc import Sequence
from typing import Any

from dfqlab.errors import ConfigurationError, did_you_mean
from dfqlab.images import SyntheticSet
from dfqlab.progress import OnStep, ignore
from dfqlab.recipes.names import RECIPES
from dfqlab.teachers import Teacher


def synthesize(
    teachers: Teacher | Sequence[Teacher],
    recipe: str,
    *,
    count: int,
    seed: int,
    on_step: OnStep = ignore,
    **settings: Any,
) -> SyntheticSet:
    """Make images from teachers alone.

    Args:
        teachers: one, or several that take images of the same size.
        recipe: "zeroq".
        count: how many images.
        seed: the same seed, settings and machine give the same bytes.
        on_step: called after every step; raise `Cancelled` in it to stop and keep what there is.
        settings: of the recipe, by the names of its dataclass, where they shall differ from the paper's.

    Raises:
        ConfigurationError: an unknown recipe or setting (names the near ones), or a count below 1.
        TeacherError: a teacher that the recipe cannot use.
    """
    if recipe not in RECIPES:
        raise ConfigurationError(f"unknown recipe {recipe!r}; {did_you_mean(recipe, RECIPES)}")
    module, name = RECIPES[recipe]
    cls = getattr(importlib.import_module(module), name)
    for setting in settings:
        if setting not in cls.__dataclass_fields__:
            known = cls.__dataclass_fields__
            raise ConfigurationError(f"recipe {recipe!r} has no setting {setting!r}; {did_you_mean(setting, known)}")
    zoo = [teachers] if isinstance(teachers, Teacher) else list(teachers)
    made: SyntheticSet = cls(**settings).synthesize(zoo, count, seed=seed, on_step=on_step)
    return made
