"""Image folders: a subfolder a class, decoded only when asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, resize

from dfqlab.data import load_data
from dfqlab.errors import DataError


def write(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_classes_are_the_sorted_subfolders_and_files_come_in_order(tmp_path: Path) -> None:
    for name in ("zebra/1.png", "ant/2.PNG", "ant/1.png", "ant/deeper/3.png", "bee/1.jpg"):
        write(tmp_path / name, noise(4, 4))
    for name in (".hidden/1.png", "bee/.hidden.png"):
        write(tmp_path / name, noise(4, 4))
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    data = load_data(tmp_path, size=(3, 4, 4))
    assert data.classes == ("ant", "bee", "zebra")
    assert data.labels.tolist() == [0, 0, 0, 1, 2]
    assert data.name == f"images of {tmp_path.name}"


def test_an_image_of_the_size_is_not_touched(tmp_path: Path) -> None:
    pixels = write(tmp_path / "a" / "1.png", noise(5, 7))
    data = load_data(tmp_path, size=(3, 5, 7))
    assert np.array_equal((data.images[0] * 255).round().permute(1, 2, 0), pixels)


@pytest.mark.parametrize(("height", "width"), [(6, 10), (10, 6)])
def test_the_middle_of_the_longer_side_is_kept(tmp_path: Path, height: int, width: int) -> None:
    pixels = write(tmp_path / "a" / "1.png", noise(height, width))
    data = load_data(tmp_path, size=(3, 6, 6))
    middle = pixels[(height - 6) // 2 :, (width - 6) // 2 :][:6, :6]
    assert np.array_equal((data.images[0] * 255).round().permute(1, 2, 0), middle)


def test_resizing_is_bilinear_with_antialiasing(tmp_path: Path) -> None:
    pixels = write(tmp_path / "a" / "1.png", noise(32, 32))
    data = load_data(tmp_path, size=(3, 8, 8))
    expected = resize(
        torch.from_numpy(pixels).permute(2, 0, 1) / 255, [8, 8], InterpolationMode.BILINEAR, antialias=True
    )
    assert (data.images[0] - expected).abs().max() < 1.5 / 255


def test_one_channel_is_grey(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", np.tile(np.array([255, 0, 0], np.uint8), (4, 4, 1)))
    grey = load_data(tmp_path, size=(1, 4, 4)).images
    assert grey.shape == (1, 1, 4, 4)
    assert (float(grey.min()), float(grey.max())) == pytest.approx(
        (0.299, 0.299), abs=0.003
    )  # the weight of red in luma, ITU-R BT.601


def test_files_are_read_only_when_their_batch_is_asked_for(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        write(tmp_path / "a" / name, noise(4, 4))
    (tmp_path / "a" / "3.png").write_bytes((tmp_path / "a" / "2.png").read_bytes()[:60])
    (tmp_path / "a" / "4.png").write_text("no image")
    batches = load_data(tmp_path, size=(3, 4, 4)).batches(2)
    images, labels = next(batches)
    assert images.shape == (2, 3, 4, 4)
    assert labels.tolist() == [0, 0]
    with pytest.raises(DataError, match=r"3\.png cannot be read as an image"):
        next(batches)


def test_what_does_not_fit_is_answered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no subfolders; an image folder has one for each class"):
        load_data(tmp_path, size=(3, 4, 4))
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no image in the subfolders"):
        load_data(tmp_path, size=(3, 4, 4))
    write(tmp_path / "a" / "1.png", noise(4, 4))
    with pytest.raises(DataError, match=r"pass size=\(channels, height, width\), or teacher\.input\.size"):
        load_data(tmp_path)
    with pytest.raises(DataError, match="not 4 channels"):
        load_data(tmp_path, size=(4, 4, 4))
