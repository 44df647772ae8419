"""`load_teacher`: a trained classifier by its name, with published weights or those of a checkpoint."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dfqlab.checkpoints import load_state_dict
from dfqlab.errors import ConfigurationError, TeacherError, did_you_mean
from dfqlab.teachers import cifar_networks
from dfqlab.teachers.names import TEACHERS
from dfqlab.teachers.teacher import Teacher

Checkpoint = str | os.PathLike[str]
_TRAINING_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # of torchvision's inceptions: never reached in eval mode


def load_teacher(
    name: str, *, checkpoint: Checkpoint | None = None, leaves: Sequence[str] = (), device: str | None = None
) -> Teacher:
    """Load a trained classifier by its name.

    | name               | weights without a checkpoint  | size, mean and std                              |
    |--------------------|-------------------------------|-------------------------------------------------|
    | `digits/NAME`      | shipped with dfqlab           | (1, 16, 16), mean and std in `digits_networks`  |
    | `cifar10/NAME`     | none, a checkpoint is needed  | (3, 32, 32), mean and std in `cifar_networks`   |
    | `torchvision/NAME` | torchvision's default weights | of those weights' transforms, size of the crop  |
    | `timm/NAME`        | timm's pretrained weights     | of timm's data configuration                    |

    A checkpoint of a torchvision or timm network may have another number of classes: they are named by their numbers.

    Args:
        name: FAMILY/NETWORK; `dfqlab.teachers.names.TEACHERS` lists them.
        checkpoint: a state dict to load instead, safetensors or a torch file of nothing but tensors; nothing is
            downloaded then.
        leaves: module paths that torch.fx shall not enter; they stay float and opaque.
        device: where the teacher, and all work on it, shall be: "cpu" (also None), "cuda", "cuda:1".

    Raises:
        ConfigurationError: no such name or device, a checkpoint that is needed and not given, torchvision or timm
            not installed.
        CheckpointError: a checkpoint that does not exist, is truncated, or is a pickle of more than tensors.
        TeacherError: a checkpoint of another network, a download that failed, or a network that is no classifier.
    """
    family, _, network = name.partition("/")
    if family not in _FAMILIES or not network:
        raise ConfigurationError(
            f"no teacher {name!r}: a name is FAMILY/NETWORK, with FAMILY one of {', '.join(_FAMILIES)}; "
            f"{did_you_mean(name, TEACHERS)}"
        )
    where = _device(device)
    # The first weights are drawn at random only to be overwritten; the caller's generator shall not notice.
    with torch.random.fork_rng(devices=[]):
        found = _FAMILIES[family](network, None if checkpoint is None else Path(checkpoint))
    return Teacher.from_module(
        found.module.to(where),
        size=found.size,
        mean=found.mean,
        std=found.std,
        classes=found.classes,
        leaves=leaves,
        name=name,
    )


class _Found(NamedTuple):
    """A network with its weights, and what `Teacher.from_module` must know of it."""

    module: nn.Module
    size: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]


def _digits(network: str, checkpoint: Path | None) -> _Found:
    from dfqlab.teachers import digits_networks as digits

    if network not in digits.DIGITS_NETWORKS:
        raise _unknown("digits", network, digits.DIGITS_NETWORKS)
    path = checkpoint or Path(__file__).parent / "weights" / f"digits_{network}.safetensors"
    module = digits.DIGITS_NETWORKS[network]()
    _fill(module, load_state_dict(path), path)
    return _Found(module, digits.DIGITS_SIZE, digits.DIGITS_MEAN, digits.DIGITS_STD, tuple("0123456789"))


def _cifar10(network: str, checkpoint: Path | None) -> _Found:
    if network not in cifar_networks.CIFAR10_NETWORKS:
        raise _unknown("cifar10", network, cifar_networks.CIFAR10_NETWORKS)
    if checkpoint is None:
        raise ConfigurationError(f"'cifar10/{network}' comes without weights; pass checkpoint=PATH to its state dict")
    module = cifar_networks.CIFAR10_NETWORKS[network]()
    _fill(module, load_state_dict(checkpoint), checkpoint)
    mean, std = cifar_networks.CIFAR10_MEAN, cifar_networks.CIFAR10_STD
    return _Found(module, cifar_networks.CIFAR10_SIZE, mean, std, cifar_networks.CIFAR10_CLASSES)


def _torchvision(network: str, checkpoint: Path | None) -> _Found:
    models = cifar_networks.zoo("torchvision.models")
    known = models.list_models(module=models)  # the submodules hold detectors, segmentation and video networks
    if network not in known:
        raise _unknown("torchvision", network, known)
    weights = models.get_model_weights(network).DEFAULT
    names: Sequence[str] = weights.meta["categories"]
    if checkpoint is None:
        module = _download(lambda: models.get_model(network, weights=weights), f"torchvision/{network}")
    else:
        same = _as_with_weights(network, weights)
        module, count = _build(lambda n: models.get_model(network, num_classes=n, **same), len(names), checkpoint)
        names = names if count == len(names) else _numbered(count)
    transforms = weights.transforms()
    size = (3, transforms.crop_size[0], transforms.crop_size[-1])
    return _Found(module, size, transforms.mean, transforms.std, names)


def _as_with_weights(network: str, weights: Any) -> dict[str, Any]:
    """What torchvision sets only where it loads its own weights; without it, they would compute something else."""
    if network in ("googlenet", "inception_v3"):  # they renormalise their input
        return {"transform_input": True, "aux_logits": False, "init_weights": False}
    if network.startswith("vit_"):  # as many positions as patches in an image of that size
        return {"image_size": weights.meta["min_size"][0]}
    return {}


def _timm(network: str, checkpoint: Path | None) -> _Found:
    timm = cifar_networks.zoo("timm")
    known = {*timm.list_models(), *timm.list_pretrained()}
    if network not in known:
        raise _unknown("timm", network, known)
    if checkpoint is None:
        module = _download(lambda: timm.create_model(network, pretrained=True), f"timm/{network}")
    else:
        classes = timm.get_pretrained_cfg(network).num_classes
        module, _ = _build(lambda n: timm.create_model(network, pretrained=False, num_classes=n), classes, checkpoint)
    count = cast(int, module.num_classes)
    if count < 1:
        raise TeacherError(f"'timm/{network}' returns features and has no classifier; choose a network with one")
    data = timm.data.resolve_model_data_config(module)
    subset = timm.data.infer_imagenet_subset(module)
    names = _numbered(count) if subset is None else timm.data.ImageNetInfo(subset).label_descriptions()
    return _Found(module, data["input_size"], data["mean"], data["std"], [name.partition(",")[0] for name in names])


_FAMILIES: dict[str, Callable[[str, Path | None], _Found]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "torchvision": _torchvision,
    "timm": _timm,
}


def _build(build: Callable[[int], nn.Module], classes: int, checkpoint: Path) -> tuple[nn.Module, int]:
    """A network with as many classes as the checkpoint's last layer has, filled with the checkpoint; and how many."""
    state = {k: t for k, t in load_state_dict(checkpoint).items() if not k.startswith(_TRAINING_HEADS)}
    module = build(classes)
    found = _classes_in(state, module, classes)
    if found != classes:
        module = build(found)
    _fill(module, state, checkpoint)
    return module, found


def _classes_in(state: Mapping[str, Tensor], module: nn.Module, classes: int) -> int:
    """The number of classes of a state dict that fits the module but for the first dimension of its last layer."""
    expected = module.state_dict()
    pairs = [(expected[k].shape, t.shape) for k, t in state.items() if k in expected and expected[k].shape != t.shape]
    if pairs and all(want[:1] == (classes,) and want[1:] == got[1:] for want, got in pairs):
        heads = {got[0] for _, got in pairs}
        return heads.pop() if len(heads) == 1 else classes
    return classes


def _fill(module: nn.Module, state: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Load a state dict that must have the module's names and shapes, and finite values.

    `num_batches_tracked` may be missing: nothing in eval mode reads it.
    """
    expected = module.state_dict()
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in expected]
    reshaped = [
        f"{k} {tuple(t.shape)} instead of {tuple(expected[k].shape)}"
        for k, t in state.items()
        if k in expected and t.shape != expected[k].shape
    ]
    differences = [
        f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if differences:
        raise TeacherError(
            f"{checkpoint} does not fit: {'; '.join(differences)}. It must hold the state_dict() of the same network"
        )
    broken = [k for k, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        raise TeacherError(f"{checkpoint} holds values that are not finite, in {broken[0]}; its training diverged")
    module.load_state_dict(state, strict=False)


def _download(fetch: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return fetch()
    except Exception as error:  # each library and each network has its own way to fail
        raise TeacherError(
            f"no weights for {name!r}: {error}. Without a network, pass checkpoint=PATH to its state dict"
        ) from error


def _unknown(family: str, network: str, known: Collection[str]) -> ConfigurationError:
    name, names = f"{family}/{network}", [f"{family}/{other}" for other in known]
    return ConfigurationError(f"no teacher {name!r}; {did_you_mean(name, names)}")


def _numbered(classes: int) -> Sequence[str]:
    return [str(index) for index in range(classes)]


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"no device {name!r} here ({reason}); device='cpu' always works") from error
    return device
