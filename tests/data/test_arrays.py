"""Images and labels of an .npz file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dfqlab.data.arrays import read_npz
from dfqlab.errors import DataError

IMAGES = np.arange(4 * 2 * 3 * 1, dtype=np.uint8).reshape(4, 2, 3, 1)
LABELS = np.array([0, 2, 1, 0])


def written(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def test_height_width_channels_become_channels_height_width(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)
    data = read_npz(written(tmp_path / "some.npz", images=colours, labels=LABELS.astype(np.uint8)))
    assert data.name == "images of some.npz"
    assert data.size == (3, 2, 3)
    assert isinstance(data.pixels, torch.Tensor)
    assert int(data.pixels[3, 2, 1, 0]) == colours[3, 1, 0, 2]
    assert data.labels.tolist() == LABELS.tolist()
    assert data.classes is None


def test_classes_are_named_if_the_file_names_them(tmp_path: Path) -> None:
    names = np.array(["ant", "bee", "cat", "dog"])
    data = read_npz(written(tmp_path / "some.npz", images=IMAGES, labels=LABELS, classes=names))
    assert data.classes == ("ant", "bee", "cat", "dog")


def test_real_images_of_cifar10(data_dir: Path) -> None:
    data = read_npz(data_dir / "cifar10" / "test.npz")
    assert (len(data), data.size) == (5000, (3, 32, 32))
    assert torch.bincount(data.labels).tolist() == pytest.approx([500] * 10, abs=60)


@pytest.mark.parametrize(
    ("arrays", "answer"),
    [
        ({"labels": LABELS}, r"has no images, only labels; write one with numpy\.savez_compressed"),
        ({"images": IMAGES}, "has no labels"),
        ({"x": IMAGES}, "has no images and no labels, only x"),
        ({"images": IMAGES / 255, "labels": LABELS}, "images are uint8 .* got float64"),
        ({"images": IMAGES[..., 0], "labels": LABELS}, r"got uint8 \(4, 2, 3\)"),
        ({"images": IMAGES, "labels": LABELS / 1}, r"labels are integers \(n,\), got float64"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, r"labels are integers \(n,\), got int64 \(4, 1\)"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "4 images, but 3 labels"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no image"),
        ({"images": IMAGES, "labels": LABELS - 1}, "got -1"),
        ({"images": IMAGES, "labels": LABELS + 1}, "none is 0; classes are numbered from 0"),
        ({"images": IMAGES, "labels": LABELS * 3}, "labels go up to 6, but none is 1, 2, 4"),
        ({"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b"])}, "there are 2 classes"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2, None])}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_what_does_not_fit_is_answered(tmp_path: Path, arrays: dict[str, object], answer: str) -> None:
    path = written(tmp_path / "some.npz", **arrays)
    with pytest.raises(DataError, match=answer):
        read_npz(path)


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "some.npz", images=IMAGES, labels=LABELS)
    content = path.read_bytes()
    np.save(tmp_path / "one.npy", IMAGES)
    damaged = bytearray(content)
    damaged[60:90] = bytes(30)
    for wrong in (b"", b"text", content[: len(content) // 2], bytes(damaged), (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"some\.npz cannot be read as an \.npz file"):
            read_npz(path)
