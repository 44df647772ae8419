"""Folders of image files, one subfolder a class, decoded only when asked for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dfqlab.errors import DataError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageFiles:
    """Image files, read in one size: scaled until they just cover it (bilinear, antialiased), then the middle cut out.

    Attributes:
        paths: the files.
        size: (channels, height, width); one channel is grey, three are RGB.

    Raises:
        DataError: neither one channel nor three.
    """

    paths: tuple[Path, ...]
    size: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.size[0] not in _MODES:
            raise DataError(
                f"image files are read as grey (1 channel) or RGB (3 channels), not {self.size[0]} channels"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, which: slice) -> UInt8[Tensor, "n c h w"]:
        """The images of a slice, decoded now.

        Raises:
            DataError: a file that is not an image, or is truncated.
        """
        return torch.stack([self._read(path) for path in self.paths[which]])

    def _read(self, path: Path) -> Tensor:
        from PIL import Image, ImageOps

        channels, height, width = self.size
        try:
            with Image.open(path) as file:
                image = ImageOps.fit(file.convert(_MODES[channels]), (width, height), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError) as error:  # a damaged PNG is a SyntaxError to Pillow
            raise DataError(f"{path} cannot be read as an image: {error}; remove it or replace it") from error
        return torch.from_numpy(np.array(image).reshape(height, width, channels)).permute(2, 0, 1)


def find_image_files(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """The image files below a folder, the class of each, and the classes: the sorted names of its subfolders.

    Hidden files and folders are passed over.

    Raises:
        DataError: no subfolder, or no image file in any.
    """
    classes = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} has no subfolders; an image folder has one for each class, its name the class's")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"no image in the subfolders of {folder}; expected files such as {folder / classes[0]}/1.png")
    return paths, labels, tuple(classes)
