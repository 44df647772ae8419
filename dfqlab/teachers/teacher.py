"""`Teacher`: a trained classifier, frozen, with what one must know to ask it something."""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dfqlab.errors import TeacherError, did_you_mean


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of an image: its size, and the normalisation of pixels in 0..1.

    Attributes:
        size: (channels, height, width).
        mean, std: one value a channel, in pixel units: the network sees `(image - mean) / std`.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        size: Sequence[int] = self.size  # it comes from users, who may give two numbers or four
        if len(size) != 3 or any(int(n) != n or n < 1 for n in size):
            raise TeacherError(f"size is (channels, height, width), all positive whole numbers; got {self.size}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.size[0]:
                raise TeacherError(f"{name} needs one value for each of {self.size[0]} channels, got {len(values)}")
            if not all(math.isfinite(v) for v in values):
                raise TeacherError(f"{name} must be finite, got {values}")
        if any(s <= 0 for s in self.std):
            raise TeacherError(f"std must be positive, got {self.std}")
        # Plain numbers, whatever they came as: the fingerprint is taken over how they print.
        object.__setattr__(self, "size", tuple(map(int, self.size)))
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))

    def normalize(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels (0..1) to what the network sees."""
        return (images - self._channels(self.mean, images)) / self._channels(self.std, images)

    def denormalize(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """What the network sees back to pixels; values outside the valid range stay outside 0..1."""
        return x * self._channels(self.std, x) + self._channels(self.mean, x)

    @property
    def valid_range(self) -> tuple[float, float]:
        """The smallest and largest value that a valid pixel can have after normalisation."""
        return (
            min((0 - m) / s for m, s in zip(self.mean, self.std, strict=True)),
            max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True)),
        )

    @staticmethod
    def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a constant of the graph
            return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)
        return _constant(values, like.dtype, like.device)


@cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied to a device once: a copy at every step would make the host wait, and no CUDA graph could hold it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained classifier: in eval mode, its parameters frozen, none of its data at hand.

    Calling it takes pixels in 0..1 and normalises them on entry. Make one with `load_teacher` or `Teacher.from_module`.

    Attributes:
        name: what reports call it.
        module: the network; it takes normalised images.
        input: size and normalisation.
        classes: a name for each class.
        batch_norms: module paths of the BatchNorm layers that remember statistics, in forward order.
        fingerprint: SHA-256 over weights and input spec.
        leaves: submodules that are never traced: they stay float and opaque.
    """

    name: str
    module: nn.Module
    input: InputSpec
    classes: tuple[str, ...]
    batch_norms: tuple[str, ...]
    fingerprint: str
    leaves: tuple[str, ...] = ()

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        classes: int | Sequence[str],
        leaves: Sequence[str] = (),
        name: str | None = None,
    ) -> "Teacher":
        """Make a teacher of any classifier; the module itself is copied, not changed.

        Args:
            module: takes normalised images (n, c, h, w), returns logits (n, classes).
            size: (channels, height, width) of an image.
            mean, std: of the normalisation, one value a channel, for pixels in 0..1.
            classes: how many classes, or their names.
            leaves: module paths that torch.fx shall not enter; they stay float and opaque.
            name: what reports call it; the class name if None.

        Raises:
            TeacherError: the network does not take such images or does not return such logits.
        """
        try:
            spec = InputSpec(tuple(size), tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]
        except TypeError as error:
            raise TeacherError(
                f"size is (channels, height, width), mean and std hold one number a channel; got size={size!r}, "
                f"mean={mean!r}, std={std!r}"
            ) from error
        names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
        name = name or type(module).__name__
        module = copy.deepcopy(module).eval().requires_grad_(False)
        known = dict(module.named_modules())
        for leaf in leaves:
            if leaf not in known or not leaf:
                raise TeacherError(f"{name!r} has no submodule {leaf!r}; {did_you_mean(leaf, filter(None, known))}")
        batch_norms = _probe(module, spec, len(names), name)
        return cls(name, module, spec, names, batch_norms, _fingerprint(module, spec), tuple(leaves))

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images in pixel units (0..1).

        Raises:
            TeacherError: the images have another size than `input.size`.
        """
        self.check_size(images)
        logits: Tensor = self.module(self.input.normalize(images))
        return logits

    def check_size(self, images: Tensor) -> None:
        """Raise a TeacherError unless images are (n, channels, height, width) as this teacher expects."""
        if images.dim() != 4 or tuple(images.shape[1:]) != self.input.size:
            expected = ", ".join(map(str, self.input.size))
            raise TeacherError(f"{self.name!r} takes images of shape (n, {expected}), got {tuple(images.shape)}")

    def require_batch_norm(self, purpose: str) -> None:
        """Raise a TeacherError, saying what the network has instead, where no BatchNorm layer remembers anything."""
        if self.batch_norms:
            return
        other: dict[str, int] = {}
        for module in self.module.modules():
            if "Norm" in type(module).__name__:
                other[type(module).__name__] = other.get(type(module).__name__, 0) + 1
        layers = ", ".join(f"{count} {kind} layer{'s' * (count > 1)}" for kind, count in other.items())
        has = f"It has {layers}: nothing of the data is remembered there" if layers else "It has no normalisation layer"
        raise TeacherError(
            f"{self.name!r} has no BatchNorm layer with running statistics, and {purpose}. {has}. See lesson 02."
        )

    @property
    def device(self) -> torch.device:
        """Where the network is, and so where work on it runs."""
        tensor = next(iter(self.module.state_dict().values()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def to(self, device: str | torch.device) -> "Teacher":
        """The same teacher on another device; this one stays where it is."""
        module = copy.deepcopy(self.module).to(device)
        return Teacher(self.name, module, self.input, self.classes, self.batch_norms, self.fingerprint, self.leaves)


def _probe(module: nn.Module, spec: InputSpec, classes: int, name: str) -> tuple[str, ...]:
    """Run two images of the mean colour and return the BatchNorm layers in the order in which they were reached."""
    reached: list[str] = []
    handles = []
    for path, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_mean is not None:

            def note(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                if path not in reached:
                    reached.append(path)

            handles.append(child.register_forward_pre_hook(note))
    tensor = next(iter(module.state_dict().values()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    try:
        with torch.no_grad():
            logits = module(torch.zeros(2, *spec.size, device=device))
    except Exception as error:
        raise TeacherError(f"{name!r} does not take images of size {spec.size}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TeacherError(f"{name!r} must return logits of shape (n, {classes}) for {classes} classes, got {came}")
    return tuple(reached)


def _fingerprint(module: nn.Module, spec: InputSpec) -> str:
    digest = hashlib.sha256(repr(spec).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
