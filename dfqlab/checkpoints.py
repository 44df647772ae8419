"""Tensors and facts in one safetensors file, written whole or not at all. Never a pickle."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqlab.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
_HEADER = "dfqlab"


def write_bytes(path: str | os.PathLike[str], content: bytes | Iterable[bytes]) -> None:
    """Write a file atomically: the old one stays, complete, until the new one is on the disk.

    Args:
        path: where; folders on the way are made.
        content: the bytes, or one piece of them after another.

    Raises:
        OutputError: the place cannot be written, or the disk is full. What was there before is still there.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write {path}: {reason}; what was there before is untouched") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def save(path: str | os.PathLike[str], tensors: Mapping[str, "Tensor"], *, kind: str, facts: Mapping[str, Any]) -> None:
    """Save named tensors and JSON facts as a safetensors file of a kind, atomically; same content, same bytes.

    Raises:
        OutputError: the place cannot be written, or the disk is full. What was there before is still there.
    """
    from safetensors.torch import save as to_bytes

    write_bytes(path, to_bytes(_apart(tensors), metadata=_metadata(kind, facts)))


def save_long(
    path: str | os.PathLike[str],
    tensors: Mapping[str, "Tensor"],
    name: str,
    parts: Iterable["Tensor"],
    shape: Sequence[int],
    *,
    kind: str,
    facts: Mapping[str, Any],
) -> None:
    """`save` with one more tensor, float32, that comes in parts along its first dimension and never is in memory whole.

    Args:
        path, kind, facts: as of `save`.
        tensors: those that are in memory.
        name: of the long one.
        parts: it, a part after the other.
        shape: of all its parts together.

    Raises:
        OutputError: as of `save`; or the parts do not make up the shape.
    """
    from safetensors.torch import save as to_bytes

    # The layout of safetensors: eight bytes that say how long the header is, the header, then the data end to end. The
    # small tensors' file says where they lie; the long one is appended.
    small = to_bytes(_apart(tensors), metadata=_metadata(kind, facts)) if tensors else b""
    length = int.from_bytes(small[:8], "little")
    header = json.loads(small[8 : 8 + length]) if tensors else {"__metadata__": _metadata(kind, facts)}
    data = small[8 + length :]
    size = 4 * math.prod(shape)
    header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + size]}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)

    def pieces() -> Iterator[bytes]:
        yield len(written).to_bytes(8, "little") + written + data
        left = size
        for part in parts:
            piece = part.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes()
            left -= len(piece)
            yield piece
        if left:
            raise OutputError(f"{path}: the parts of {name!r} do not make up {tuple(shape)}; nothing was written")

    write_bytes(path, pieces())


def load(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Load what `save` wrote: the tensors and the facts.

    Raises:
        CheckpointError: no such file, truncated, not safetensors, a pickle, another kind, or a newer format.
    """
    tensors, metadata = _read(path)
    if _HEADER not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not one that dfqlab wrote; expected a {kind}")
    try:
        header = json.loads(metadata[_HEADER])
        version, found, facts = int(header["version"]), header["kind"], dict(header["facts"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a damaged header; write it again") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, and this dfqlab reads up to {FORMAT_VERSION}; upgrade dfqlab to read it"
        )
    if found != kind:
        raise CheckpointError(f"{path} holds a {found}; expected a {kind}")
    return tensors, facts


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, "Tensor"]:
    """Load the plain parameters of a network: safetensors, or a torch file that holds tensors and nothing else.

    What a file is, its first bytes say, not its name.

    Raises:
        CheckpointError: no such file, truncated, or a pickle of anything but tensors (refused, never executed).
    """
    path = Path(path)
    if path.suffix == ".safetensors" or not _is_pickle(path):
        return _read(path)[0]
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a pickle's protocol just before it refuses the pickle
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is a pickle that holds more than tensors; loading it could run any code, so it is refused. "
            "Save the network's state_dict() with safetensors.torch.save_file and pass that file"
        ) from error
    except Exception as error:  # damaged bytes read as opcodes can raise anything
        raise CheckpointError(f"{path} is not a file of tensors, or it is truncated: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; expected a state_dict of tensors")
    other = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise CheckpointError(
            f"{path} holds more than tensors, under {', '.join(other[:3])}; expected a state_dict. If one of them is "
            "the state_dict, save that alone with safetensors.torch.save_file"
        )
    return state


def _metadata(kind: str, facts: Mapping[str, Any]) -> dict[str, str]:
    content = {"version": FORMAT_VERSION, "kind": kind, "facts": dict(facts)}
    return {_HEADER: json.dumps(content, sort_keys=True, allow_nan=False)}


def _apart(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Contiguous and on the CPU, no two in one piece of memory: safetensors refuses those."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return apart


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as a pickle does, or as the zip archive in which torch puts one."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError as error:
        raise CheckpointError(f"no such file: {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return start[:1] == b"\x80" or start == b"PK\x03\x04"


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise CheckpointError(f"no such file: {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        if _is_pickle(Path(path)):
            raise CheckpointError(f"{path} is a pickle, not safetensors; it is refused, never executed") from error
        raise CheckpointError(f"{path} is not safetensors, or it is truncated: {error}") from error
