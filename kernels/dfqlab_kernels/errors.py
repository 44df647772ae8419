"""Errors of the kernels package, which stands on its own and knows nothing of dfqlab."""


class ShapeError(ValueError):
    """A tensor whose shape an op cannot take: says what was expected and what came."""


class DeviceError(ValueError):
    """Tensors on two devices where an op takes one: says which."""


class BackendError(RuntimeError):
    """Triton was asked for where it cannot run: says why, and what runs instead."""
