"""scikit-learn's 1797 handwritten digits, shipped in one small file. `python -m dfqlab.data.digits PATH` rewrites it.

The file holds `images` (uint8, (1797, 8, 8), values 0..16), `labels` (uint8) and `test` (bool): the third that is held
out. The split is stored, so that it depends on no library's random numbers.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its
test set, CC BY 4.0).
"""

import io
import os
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from dfqlab.checkpoints import write_bytes
from dfqlab.data.images import LabelledImages

SHIPPED = Path(__file__).with_name("digits.npz")
_CLASSES = tuple("0123456789")
_SPLIT_SEED = 0


def read_digits(split: Literal["train", "test"]) -> LabelledImages:
    """Read the shipped digits, 1198 to train with or 599 held out: (1, 16, 16), enlarged bilinearly from 8x8."""
    with np.load(SHIPPED, allow_pickle=False) as file:
        chosen = file["test"] == (split == "test")
        images, labels = file["images"][chosen], file["labels"][chosen]
    small = torch.from_numpy(images).float().unsqueeze(1) / 16
    pixels = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    name = {"train": "training digits", "test": "held-out digits"}[split]
    return LabelledImages(name, pixels, torch.from_numpy(labels.astype(np.int64)), _CLASSES)


def build_digits(path: str | os.PathLike[str]) -> None:
    """Write the shipped file anew from scikit-learn.

    A third is held out, the same share of every class to within one image: all images sorted by class, in random order
    within a class, and every third of them taken.

    Raises:
        OutputError: the place cannot be written.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits().images, load_digits().target
    shuffled = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    test = np.zeros(len(labels), dtype=bool)
    test[by_class[1::3]] = True
    content = io.BytesIO()
    np.savez_compressed(content, images=images.astype(np.uint8), labels=labels.astype(np.uint8), test=test)
    write_bytes(path, content.getvalue())


if __name__ == "__main__":
    build_digits(sys.argv[1])
