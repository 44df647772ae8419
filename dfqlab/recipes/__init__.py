"""One paper, one file; and the way to call any of them by its name."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfqlab.errors import ConfigurationError, did_you_mean
from dfqlab.images import SyntheticSet
from dfqlab.progress import OnStep, ignore
from dfqlab.recipes.names import RECIPES
from dfqlab.synthesis.checkpointing import Checkpoint
from dfqlab.synthesis.inversion import Labels, Request
from dfqlab.teachers import Teacher


def synthesize(
    teachers: Teacher | Sequence[Teacher],
    recipe: str,
    *,
    count: int,
    seed: int,
    labels: Labels | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    on_step: OnStep = ignore,
    **settings: Any,
) -> SyntheticSet:
    """Make images from teachers alone.

    Args:
        teachers: one, or several that agree on classes: a zoo.
        recipe: "zeroq", "knowledge_within", "deepinversion", "mixmix" or "dsg".
        count: how many images.
        seed: the same seed, settings and machine give the same bytes.
        labels: what the images shall be taken for: class indices, one an image, or "balanced". If None, the recipe
            says: those that ask a teacher for classes balance them, the others have none.
        checkpoint: a folder where the job can go on after it was stopped, and where its set is at the end. A set of the
            same job that is there already is returned; another job's is refused.
        on_step: called after every step; raise `Cancelled` in it to stop and keep what there is.
        settings: of the recipe, by the names of its dataclass, where they shall differ from the paper's.

    Raises:
        ConfigurationError: an unknown recipe or setting (names the near ones), or a count below 1.
        TeacherError: a teacher that the recipe cannot use, or a zoo that disagrees on classes.
        CheckpointError: the checkpoint is another job's.
        SynthesisError: the loss is no number any more; the error has the images from before.
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
    request: Request = {"count": count, "seed": seed, "on_step": on_step}
    if labels is not None:
        request["labels"] = labels
    if checkpoint is not None:
        request["checkpoint"] = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(Path(checkpoint))
    made: SyntheticSet = cls(**settings).synthesize(zoo, **request)
    return made
