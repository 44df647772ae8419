"""CIFAR-10 as its authors publish it and torchvision unpacks it: `cifar-10-batches-py`, pickles of Python 2.

A pickle can run any code. These are read by an unpickler that knows two types of numpy, and makes inert ones of them.
"""

import pickle
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dfqlab.data.images import LabelledImages
from dfqlab.errors import DataError

FOLDER = "cifar-10-batches-py"
_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_PIXELS = 3 * 32 * 32
_Kind = TypeVar("_Kind")


def find_cifar10(folder: Path) -> Path | None:
    """The folder that holds the batches, if it is this one or the one inside it that torchvision makes."""
    return next((place for place in (folder, folder / FOLDER) if (place / "batches.meta").is_file()), None)


def read_cifar10(folder: Path, split: Literal["train", "test"]) -> LabelledImages:
    """Read the 50,000 training images or the 10,000 test images, RGB, 32x32.

    Raises:
        DataError: a file that is missing, damaged, or holds something else.
    """
    classes = _read(folder / "batches.meta", "label_names", str)
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for name in _BATCHES[split]:
        pixels.append(_read_images(folder / name))
        labels += _read(folder / name, "labels", int)
    images = torch.from_numpy(np.concatenate(pixels)).reshape(-1, 3, 32, 32)
    return LabelledImages(f"CIFAR-10 {split} images", images, torch.tensor(labels, dtype=torch.int64), tuple(classes))


def _read(path: Path, key: str, kind: type[_Kind]) -> list[_Kind]:
    values = _unpickle(path).get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise _foreign(path, f"no list of {kind.__name__} under {key!r}")
    return values


def _read_images(path: Path) -> NDArray[np.uint8]:
    match _unpickle(path).get("data"):
        case _Array(state=(_, (int() as rows, 3072), _DType(name="u1"), column_major, str() | bytes() as content)):
            raw = content.encode("latin1") if isinstance(content, str) else content
            if len(raw) == rows * _PIXELS and not column_major:
                return np.frombuffer(bytearray(raw), np.uint8).reshape(rows, _PIXELS)
    raise _foreign(path, f"no rows of {_PIXELS} bytes under 'data'")


class _DType:
    """What a pickle says of a numpy type; its name is kept."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which a single byte does not have."""


class _Array:
    """What a pickle says of a numpy array: version, shape, type, order, bytes; not yet believed."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") | ("numpy", "ndarray"):
                return _Array
            case ("numpy", "dtype"):
                return _DType
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")


def _unpickle(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()  # the strings of Python 2 are bytes
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; CIFAR-10 has it, unpack it again") from error
    except Exception as error:  # damaged bytes read as opcodes can raise anything
        raise _foreign(path, str(error)) from error
    if not isinstance(content, dict):
        raise _foreign(path, f"a {type(content).__name__}, not a dict")
    return content


def _foreign(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is no batch of CIFAR-10 ({reason}); unpack the published cifar-10-python.tar.gz again")
