"""Look inside a network while it runs."""

import torch
from jaxtyping import Float
from torch import Tensor

from dfqlab.errors import ConfigurationError, did_you_mean
from dfqlab.teachers import Teacher


def layer_output(teacher: Teacher, layer: str, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n ..."]:
    """What a layer of the teacher gives for these images.

    Args:
        teacher: the network.
        layer: the layer's module path.
        images: in pixel units.

    Raises:
        ConfigurationError: no such layer.
        TeacherError: images of another size than the teacher takes.
    """
    modules = dict(teacher.module.named_modules())
    if layer not in modules or not layer:
        raise ConfigurationError(
            f"{teacher.name!r} has no layer {layer!r}; {did_you_mean(layer, filter(None, modules))}"
        )
    seen: list[Tensor] = []
    handle = modules[layer].register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        with torch.no_grad():
            teacher(images)
    finally:
        handle.remove()
    return seen[-1]
