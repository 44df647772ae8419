"""One paper, one file; and the way to call any of them by its name."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dfqlab.compression.insertion import prepare
from dfqlab.compression.model import CompressedModel
from dfqlab.compression.spec import specification
from dfqlab.errors import ConfigurationError, TeacherError, did_you_mean
from dfqlab.images import ImageSource, SyntheticSet
from dfqlab.progress import Cancelled, OnStep, ignore
from dfqlab.recipes.names import RECIPES, WITHOUT_IMAGES
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
    paper = _settled(recipe, RECIPES, settings)
    zoo = [teachers] if isinstance(teachers, Teacher) else list(teachers)
    request: Request = {"count": count, "seed": seed, "on_step": on_step}
    if labels is not None:
        request["labels"] = labels
    if checkpoint is not None:
        request["checkpoint"] = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(Path(checkpoint))
    made: SyntheticSet = paper.synthesize(zoo, **request)
    return made


def compress(
    teachers: Teacher | Sequence[Teacher],
    recipe: str,
    *,
    weights: int = 8,
    activations: int = 8,
    count: int = 256,
    seed: int = 0,
    images: ImageSource | None = None,
    on_step: OnStep = ignore,
    quantization: Mapping[str, Any] | None = None,
    **settings: Any,
) -> CompressedModel:
    """A paper from the network to integers: its images, and what it does with them.

    Args:
        teachers: the network, or a zoo of which the first is compressed.
        recipe: "dfq" (no images), "zeroq", "dsg" or "mixmix".
        weights, activations: bits, 2 to 8.
        count, seed: of the images.
        images: in place of those that the recipe would make; "dfq" looks at none.
        on_step: called after every step; raise `Cancelled` in it to stop.
        quantization: fields of `QuantizationSpec`, where they shall differ from the paper's.
        settings: of the recipe, by the names of its dataclass.

    Raises:
        ConfigurationError: an unknown recipe or setting, or one that makes images and says nothing of compressing.
        QuantizationError, DataError, TeacherError, SynthesisError: as `quantize` and `synthesize` do.
        Cancelled: `on_step` raised it; half-made images compress nothing.
    """
    paper = _settled(recipe, RECIPES | WITHOUT_IMAGES, settings)
    if not hasattr(paper, "compress"):
        raise ConfigurationError(f"{recipe!r} makes images alone: synthesize(...) them, and quantize(...) with them")
    zoo = [teachers] if isinstance(teachers, Teacher) else list(teachers)
    if not zoo:
        raise TeacherError("nothing to compress: expected a teacher, or several, got none")
    how = {"weights": weights, "activations": activations, **(quantization or {})}
    prepare(zoo[0], specification(**paper.quantization | how))  # what cannot be done is refused before images are made
    if images is None and recipe in RECIPES:
        made: SyntheticSet = paper.synthesize(zoo, count=count, seed=seed, on_step=on_step)
        if made.partial:
            raise Cancelled
        images = made
    model: CompressedModel = paper.compress(zoo[0], images, on_step=on_step, **how)
    return model


def _settled(recipe: str, recipes: Mapping[str, tuple[str, str]], settings: Mapping[str, Any]) -> Any:
    """A recipe with its settings."""
    if recipe not in recipes:
        raise ConfigurationError(f"unknown recipe {recipe!r}; {did_you_mean(recipe, recipes)}")
    module, name = recipes[recipe]
    cls = getattr(importlib.import_module(module), name)
    for setting in settings:
        if setting not in cls.__dataclass_fields__:
            known = cls.__dataclass_fields__
            raise ConfigurationError(f"recipe {recipe!r} has no setting {setting!r}; {did_you_mean(setting, known)}")
    return cls(**settings)
