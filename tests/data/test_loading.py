"""`load_data`: which reader a name or a path goes to, and an answer where there is none."""

from pathlib import Path

import numpy as np
import pytest

from dfqlab.data import load_data
from dfqlab.errors import ConfigurationError, DataError


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "some.npz"
    np.savez_compressed(path, images=np.zeros((2, 4, 5, 3), np.uint8), labels=np.array([0, 1]))
    return path


def test_an_npz_file_is_one_split_and_taken_whole(npz: Path) -> None:
    assert len(load_data(str(npz))) == len(load_data(npz, split="train")) == 2


def test_images_of_another_size_than_wanted_are_refused(npz: Path) -> None:
    assert load_data(npz, size=(3, 4, 5)).size == (3, 4, 5)
    with pytest.raises(DataError, match=r"size \(3, 4, 5\), not \(3, 5, 4\); only image folders are resized"):
        load_data(npz, size=(3, 5, 4))
    with pytest.raises(DataError, match=r"held-out digits holds images of size \(1, 16, 16\)"):
        load_data("digits", size=(3, 32, 32))


def test_an_unknown_name_gets_the_near_one_and_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data 'digit': .*did you mean 'digits'"):
        load_data("digit")
    with pytest.raises(DataError, match=r"no data '.*gone\.npz': no such file or folder"):
        load_data(tmp_path / "gone.npz")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"images\.zip is neither a folder nor an \.npz file"):
        load_data(tmp_path / "images.zip")


@pytest.mark.traces  # a type check would catch it before we answer
def test_an_unknown_split_gets_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="no split 'val'; known: test, train"):
        load_data("digits", split="val")  # type: ignore[arg-type]
