"""CIFAR-10 in its published format, read without trusting it; small files of the same kind, made here."""

import hashlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10

from dfqlab.data import load_data
from dfqlab.errors import DataError

CLASSES = ["airplane", "automobile", "bird", "cat"]
ROWS = 3


class Python2Pickler(pickle._Pickler):  # the one in Python, whose methods can be replaced
    """Writes bytes and text as the strings of Python 2, which is what the published files hold."""

    def save_string(self, value: str | bytes) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}


def python2_pickle(path: Path, content: object) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    # numpy's own name for its arrays, at the time
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def batch(seed: int) -> tuple[NDArray[np.uint8], list[int]]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (ROWS, 3072), dtype=np.uint8), generator.integers(0, 4, ROWS).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds `cifar-10-batches-py`."""
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    python2_pickle(inner / "batches.meta", {"num_cases_per_batch": ROWS, "label_names": CLASSES, "num_vis": 3072})
    for seed, name in enumerate(["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]):
        pixels, labels = batch(seed)
        python2_pickle(inner / name, {"batch_label": name, "labels": labels, "data": pixels, "filenames": ["a.png"]})
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_it_reads_what_torchvision_reads(folder: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_our_sum(name: str) -> list[str]:
        return [name, hashlib.md5((folder / CIFAR10.base_folder / name).read_bytes()).hexdigest()]

    monkeypatch.setattr(CIFAR10, "train_list", [with_our_sum(name) for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [with_our_sum("test_batch")])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": with_our_sum("batches.meta")[1]})
    expected = CIFAR10(folder, train=split == "train", download=False)

    data = load_data(folder, split=split)  # type: ignore[arg-type]
    assert isinstance(data.pixels, torch.Tensor)
    assert len(data) == (5 * ROWS if split == "train" else ROWS)
    assert np.array_equal(data.pixels.permute(0, 2, 3, 1), expected.data)
    assert data.labels.tolist() == expected.targets
    assert data.classes == tuple(expected.classes)
    assert data.name == f"CIFAR-10 {split} images"


def test_the_inner_folder_may_be_named_too(folder: Path) -> None:
    inner = load_data(folder / "cifar-10-batches-py", size=(3, 32, 32))
    assert torch.equal(inner.images, load_data(folder).images)


class RunsCode:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_batch_is_refused_and_never_run(folder: Path, protocol: int) -> None:
    pixels, labels = batch(0)
    content = {"labels": labels, "data": pixels, "more": RunsCode(folder / "code ran")}
    (folder / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match=r"test_batch is no batch of CIFAR-10 \(it asks for .*refused"):
        load_data(folder)
    assert not (folder / "code ran").exists()


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"data": np.zeros((ROWS, 3071), np.uint8)}, "no rows of 3072 bytes"),
        ({"data": np.zeros((ROWS, 3072), np.int16)}, "no rows of 3072 bytes"),
        ({"data": np.zeros((3072, ROWS), np.uint8).T}, "no rows of 3072 bytes"),
        ({"data": [1, 2]}, "no rows of 3072 bytes"),
        ({"labels": "0123"}, "no list of int under 'labels'"),
        ({"labels": ["0"] * ROWS}, "no list of int under 'labels'"),
        ({"labels": [0]}, "3 images, but 1 labels"),
        ({"labels": [0, 1, 4]}, "a label is 4, but there are 4 classes"),
    ],
)
def test_a_batch_of_other_things_is_refused(folder: Path, changes: dict[str, object], answer: str) -> None:
    pixels, labels = batch(0)
    python2_pickle(folder / "cifar-10-batches-py" / "test_batch", {"labels": labels, "data": pixels, **changes})
    with pytest.raises(DataError, match=answer):
        load_data(folder)


def test_missing_and_damaged_batches_are_named(folder: Path) -> None:
    path = folder / "cifar-10-batches-py" / "test_batch"
    content = path.read_bytes()
    for wrong in (b"", b"text", content[:2000], pickle.dumps([1, 2])):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"test_batch is no batch of CIFAR-10 .*unpack the published"):
            load_data(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*test_batch: No such file"):
        load_data(folder)
