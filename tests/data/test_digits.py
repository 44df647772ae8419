"""The embedded digits: small, reproducible, and split once and for all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dfqlab.data import load_data
from dfqlab.data.digits import SHIPPED, build_digits


def test_the_shipped_file_is_what_the_builder_writes(tmp_path: Path) -> None:
    build_digits(tmp_path / "digits.npz")
    with np.load(SHIPPED) as shipped, np.load(tmp_path / "digits.npz") as built:
        assert sorted(shipped.files) == sorted(built.files) == ["images", "labels", "test"]
        for key in shipped.files:
            assert shipped[key].dtype == built[key].dtype
            assert np.array_equal(shipped[key], built[key])


def test_the_shipped_file_is_small() -> None:
    assert SHIPPED.stat().st_size <= 70_000


def test_the_shipped_images_are_scikit_learns() -> None:
    with np.load(SHIPPED) as shipped:
        assert np.array_equal(shipped["images"], load_digits().images)
        assert np.array_equal(shipped["labels"], load_digits().target)


def test_a_third_of_each_class_is_held_out() -> None:
    train, test = load_data("digits", split="train"), load_data("digits")
    assert (len(train), len(test)) == (1198, 599)
    whole = np.bincount(load_digits().target)
    assert torch.bincount(test.labels).tolist() == pytest.approx((whole / 3).tolist(), abs=1)
    assert (torch.bincount(test.labels) + torch.bincount(train.labels)).tolist() == whole.tolist()


def test_images_are_enlarged_bilinearly_in_pixel_units() -> None:
    data = load_data("digits", size=(1, 16, 16))
    assert data.images.min() == 0
    assert data.images.max() == 1
    with np.load(SHIPPED) as shipped:
        small = shipped["images"][shipped["test"]][0] / 16
    # A new pixel lies a quarter of an old one from the nearest: weights 3/4 and 1/4 along each axis (edges repeat).
    padded = np.pad(small, 1, mode="edge")
    rows = np.empty((16, 10))
    rows[0::2], rows[1::2] = 0.25 * padded[:-2] + 0.75 * padded[1:-1], 0.75 * padded[1:-1] + 0.25 * padded[2:]
    large = np.empty((16, 16))
    large[:, 0::2] = 0.25 * rows[:, :-2] + 0.75 * rows[:, 1:-1]
    large[:, 1::2] = 0.75 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    assert np.abs(data.images[0, 0].numpy() - large).max() < 1e-6
