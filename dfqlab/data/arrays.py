"""Images and labels as arrays in an .npz file."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dfqlab.data.images import LabelledImages
from dfqlab.errors import DataError

_MAKE_ONE = "write one with numpy.savez_compressed(path, images=images, labels=labels)"


def read_npz(path: Path) -> LabelledImages:
    """Read `images`, uint8 (n, height, width, channels), and `labels`, integers (n,), of an .npz file.

    Without `classes`, a third array of their names, every class from 0 to the largest label must occur: that is how
    labels which count from 1 are noticed.

    Raises:
        DataError: not an .npz file, a key that is missing, or arrays of another type, shape or range.
    """
    arrays, keys = _read_arrays(path)
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}, only {', '.join(keys) or 'nothing'}; {_MAKE_ONE}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"{path}: images are uint8 (n, height, width, channels), got {images.dtype} {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(f"{path}: labels are integers (n,), got {labels.dtype} {labels.shape}")
    classes = tuple(map(str, arrays["classes"].tolist())) if "classes" in arrays else None
    data = LabelledImages(
        f"images of {path.name}",
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels.astype(np.int64)),
        classes,
    )
    if classes is None:
        _require_every_class(path, labels)
    return data


def _read_arrays(path: Path) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
    """The arrays that we know, and the names of all there are."""
    try:
        # An array of objects is a pickle, and reading one could run any code. Opened here, because numpy leaves the
        # file open where the archive is damaged.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            known = {key: file[key] for key in file.files if key in ("images", "labels", "classes")}
            return known, list(file.files)
    except Exception as error:  # a damaged archive fails anywhere: zip, zlib, numpy's header
        raise DataError(f"{path} cannot be read as an .npz file of plain arrays: {error}; {_MAKE_ONE}") from error


def _require_every_class(path: Path, labels: NDArray[np.generic]) -> None:
    found = np.unique(labels)
    absent = sorted(set(range(int(found[-1]) + 1)) - set(found.tolist()))
    if absent:
        raise DataError(
            f"{path}: labels go up to {found[-1]}, but none is {', '.join(map(str, absent[:3]))}; classes are numbered "
            "from 0 without a gap. If these have no image, put the names of all classes into the file as `classes`"
        )
