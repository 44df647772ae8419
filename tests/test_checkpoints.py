"""Files that are written whole or not at all, and that never run code."""

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dfqlab import checkpoints
from dfqlab.errors import CheckpointError, OutputError

FACTS = {"seed": 3, "recipe": "zeroq", "plan": {"batch": 32, "compiled": False}, "loss": [0.5, 0.25]}


class RunsCode:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.rand(2, 3, 4, 4, generator=generator),
        "labels": torch.tensor([1, 2]),
        "codes": torch.tensor([[-128, 127]], dtype=torch.int8),
        "scale": torch.tensor(0.1, dtype=torch.float64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.empty(0, 4),
    }


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    checkpoints.save(path, tensors, kind="synthetic set", facts=FACTS)
    return path


def test_what_is_saved_comes_back(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    found, facts = checkpoints.load(saved(tmp_path / "new" / "a.safetensors", tensors), kind="synthetic set")
    assert facts == FACTS
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    one = saved(tmp_path / "one.safetensors", tensors)
    other = tmp_path / "other.safetensors"
    backwards = dict(reversed(tensors.items()))
    checkpoints.save(other, backwards, kind="synthetic set", facts=dict(reversed(FACTS.items())))
    assert one.read_bytes() == other.read_bytes()
    checkpoints.save(other, tensors, kind="synthetic set", facts={**FACTS, "seed": 4})
    assert one.read_bytes() != other.read_bytes()


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    packed = torch.arange(6.0)
    views = {
        "all": packed,
        "again": packed,
        "first": packed[:3],
        "every second": packed[::2],
        "row": packed[:1].expand(4),
    }
    checkpoints.save(tmp_path / "a.safetensors", views, kind="test", facts={})
    found, _ = checkpoints.load(tmp_path / "a.safetensors", kind="test")
    assert all(torch.equal(found[name], view) for name, view in views.items())


def test_a_file_is_readable_for_all_and_nothing_else_is_left(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "a.safetensors", tensors)
    saved(path, tensors)
    checkpoints.write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'


def test_a_truncated_file_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = saved(tmp_path / "a.safetensors", tensors)
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            checkpoints.load(path, kind="synthetic set")
        with pytest.raises(CheckpointError, match="truncated"):
            checkpoints.load_state_dict(path)


def test_a_foreign_file_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="not one that dfqlab wrote; expected a synthetic set"):
        checkpoints.load(path, kind="synthetic set")
    path.write_text("a letter to a friend\n" * 10)
    with pytest.raises(CheckpointError, match="is not safetensors"):
        checkpoints.load(path, kind="synthetic set")
    with pytest.raises(CheckpointError, match="is not safetensors"):
        checkpoints.load_state_dict(path.rename(tmp_path / "a.pt"))


def test_another_kind_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="holds a synthetic set; expected a model"):
        checkpoints.load(saved(tmp_path / "a.safetensors", tensors), kind="model")


def test_a_newer_format_asks_for_an_upgrade(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", checkpoints.FORMAT_VERSION + 1)
    path = saved(tmp_path / "a.safetensors", tensors)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, and this dfqlab reads up to 1; upgrade dfqlab"):
        checkpoints.load(path, kind="synthetic set")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        "{}",
        '{"version": "new", "kind": "synthetic set", "facts": {}}',
        '{"version": 1, "kind": "synthetic set", "facts": 3}',
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, tensors: dict[str, Tensor], header: str) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata={"dfqlab": header})
    with pytest.raises(CheckpointError, match="damaged header"):
        checkpoints.load(tmp_path / "a.safetensors", kind="synthetic set")


def test_a_state_dict_comes_from_safetensors_or_a_torch_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "named otherwise.bin")
    torch.save(tensors, tmp_path / "a.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        state = checkpoints.load_state_dict(path)
        assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("protocol", [2, 4, "torch"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path, name: str, protocol: int | str) -> None:
    content = {"weight": RunsCode(tmp_path / "code ran")}
    if isinstance(protocol, int):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"is a pickle.* refused"):
        checkpoints.load_state_dict(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"is a pickle.* refused"):
        checkpoints.load(tmp_path / name, kind="synthetic set")
    assert not (tmp_path / "code ran").exists()


def test_a_truncated_torch_file_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    for name, zipped in (("zip.pt", True), ("old.pt", False)):
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=name):
            checkpoints.load_state_dict(tmp_path / name)


def test_a_torch_file_of_other_things_says_what_it_holds(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match=r"more than tensors, under state_dict, epoch.*save that alone"):
        checkpoints.load_state_dict(tmp_path / "training.pt")
    torch.save(tensors["images"], tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor; expected a state_dict"):
        checkpoints.load_state_dict(tmp_path / "tensor.pt")


def test_what_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    for name in ("gone.pt", "gone.safetensors"):
        with pytest.raises(CheckpointError, match=f"no such file: .*{name}"):
            checkpoints.load_state_dict(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.load(tmp_path / "gone.safetensors", kind="synthetic set")
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoints.load_state_dict(tmp_path)


FILLS_THE_DISK = """
import resource, signal, sys
import torch
from dfqlab import checkpoints
from dfqlab.errors import OutputError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG, as on a full disk with ENOSPC
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    checkpoints.save(sys.argv[1], {"images": torch.ones(100_000)}, kind="synthetic set", facts={})
except OutputError as error:
    print(error)
else:
    print("it was written")
"""


def test_a_disk_that_fills_in_the_middle_of_a_save_leaves_the_old_file(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    path = saved(tmp_path / "a.safetensors", tensors)
    before = path.read_bytes()
    said = subprocess.check_output([sys.executable, "-c", FILLS_THE_DISK, str(path)], text=True)
    assert said.startswith(f"cannot write {path}: ")
    assert "what was there before is untouched" in said
    assert path.read_bytes() == before
    found, _ = checkpoints.load(path, kind="synthetic set")
    assert torch.equal(found["images"], tensors["images"])
    assert list(tmp_path.iterdir()) == [path]


WRITES_AS_NOBODY = """
import os, sys
from dfqlab import checkpoints
from dfqlab.errors import OutputError

if os.geteuid() == 0:  # whom permissions do not stop
    os.setuid(65534)
try:
    checkpoints.write_bytes(sys.argv[1], b"new")
except OutputError as error:
    print(error)
else:
    print("it was written")
"""


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    tmp_path.chmod(0o500)
    try:
        said = subprocess.check_output([sys.executable, "-c", WRITES_AS_NOBODY, str(path)], text=True)
    finally:
        tmp_path.chmod(0o700)
    assert said.strip() == f"cannot write {path}: Permission denied; what was there before is untouched"
    assert path.read_bytes() == b"old"


def test_a_place_below_a_file_or_on_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    for place in ("file/a.bin", "folder"):
        with pytest.raises(OutputError, match=f"cannot write .*{place}"):
            checkpoints.write_bytes(tmp_path / place, b"new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"old"
