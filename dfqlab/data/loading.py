"""`load_data`: real images by a name or a path, all through one interface."""

import os
from pathlib import Path
from typing import Literal

import torch

from dfqlab.data.arrays import read_npz
from dfqlab.data.cifar import find_cifar10, read_cifar10
from dfqlab.data.folders import ImageFiles, find_image_files
from dfqlab.data.images import LabelledImages
from dfqlab.errors import ConfigurationError, DataError, did_you_mean

DATA_NAMES = ("digits",)


def load_data(
    spec: str | os.PathLike[str],
    *,
    split: Literal["train", "test"] = "test",
    size: tuple[int, int, int] | None = None,
) -> LabelledImages:
    """Load real images and their labels, to judge with.

    | spec                                | what                                                       | split  |
    |-------------------------------------|------------------------------------------------------------|--------|
    | `digits`                            | the embedded digits, (1, 16, 16)                           | has it |
    | a folder with `cifar-10-batches-py` | CIFAR-10 as torchvision unpacks it, (3, 32, 32)            | has it |
    | a file `.npz`                       | `images`, uint8 (n, height, width, channels), and `labels` | is one |
    | any other folder                    | a subfolder of image files a class, brought to `size`      | is one |

    Args:
        spec: a name or a path; a folder that has the name is `./digits`.
        split: which part, of data that has parts; a file or a folder that is one split is taken whole.
        size: (channels, height, width) of the images that are wanted, such as `teacher.input.size`. Image folders need
            it; other data must have it.

    Raises:
        DataError: nothing there, something else there, or images of another size.
        ConfigurationError: a split that is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ConfigurationError(f"no split {split!r}; {did_you_mean(split, ('train', 'test'))}")
    path = Path(spec)
    if spec in DATA_NAMES:
        # Late, so that `python -m dfqlab.data.digits` does not find itself imported already.
        from dfqlab.data.digits import read_digits

        data = read_digits(split)
    elif path.is_dir():
        data = _read_folder(path, split, size)
    elif path.suffix == ".npz" and path.is_file():
        data = read_npz(path)
    elif path.exists():
        raise DataError(f"{path} is neither a folder nor an .npz file; see load_data for what can be read")
    else:
        raise DataError(
            f"no data {str(spec)!r}: no such file or folder, and no such name; {did_you_mean(str(spec), DATA_NAMES)}"
        )
    if size is not None and data.size != size:
        raise DataError(f"{data.name} holds images of size {data.size}, not {size}; only image folders are resized")
    return data


def _read_folder(path: Path, split: Literal["train", "test"], size: tuple[int, int, int] | None) -> LabelledImages:
    cifar10 = find_cifar10(path)
    if cifar10 is not None:
        return read_cifar10(cifar10, split)
    paths, labels, classes = find_image_files(path)
    if size is None:
        raise DataError(f"{path} is an image folder: pass size=(channels, height, width), or teacher.input.size")
    files = ImageFiles(tuple(paths), size)
    return LabelledImages(f"images of {path.name}", files, torch.tensor(labels, dtype=torch.int64), classes)
