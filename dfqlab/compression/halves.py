"""Input channels split in two (Zhao et al. 2019): which ones, and how far apart their halves stand."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SplitInputs:
    """A layer's weights before channels that it reads were split, and the channels.

    Attributes:
        whole: (out, channels, rest).
        parents: one after the other, as `outliers` gives them.
    """

    whole: Tensor
    parents: tuple[int, ...]

    @property
    def origin(self) -> list[int]:
        """For each channel that is read now, the one that it comes from."""
        found = list(range(self.whole.shape[1]))
        for parent in self.parents:
            found.append(found[parent])
        return found

    def halves(self, step: Float[Tensor, "out"] | None = None) -> Float[Tensor, "out more rest"]:
        """The weights now: halves half a step of the row apart, or alike if None."""
        return split_inputs(self.whole, self.parents, torch.zeros(len(self.whole)) if step is None else step)

    def repeated(self, rows: Sequence[int]) -> "SplitInputs":
        """Of the layer whose output channels are these of its own."""
        return SplitInputs(self.whole[list(rows)], self.parents)


def outliers(weight: Float[Tensor, "out channels rest"], count: int) -> tuple[int, ...]:
    """The input channel with the largest weight, so many times, each time after it was split.

    The second half of the k-th of them counts as a channel behind all there were: it may be split again.
    """
    reach = weight.abs().amax((0, 2))
    found = []
    for _ in range(count):
        found.append(int(reach.argmax()))
        reach[found[-1]] /= 2
        reach = torch.cat([reach, reach[found[-1:]]])
    return tuple(found)


def split_inputs(
    weight: Float[Tensor, "out channels rest"], parents: Sequence[int], step: Float[Tensor, "out"]
) -> Float[Tensor, "out more rest"]:
    """Input channels split in two, one after the other; the second halves stand behind all channels there were.

    Half a step apart, `(w - step / 2) / 2` and `(w + step / 2) / 2`: rounded to nearest, both together are what the
    whole is, where neither is clipped. Halves that are alike would both be rounded to the same side, and lose twice
    as much.

    >>> split_inputs(torch.tensor([[[3.0], [1.0]]]), [0], torch.ones(1)).flatten().tolist()
    [1.25, 1.0, 1.75]
    """
    apart = step.to(weight)[:, None] / 2
    parts = list(weight.unbind(1))
    for parent in parents:
        whole = parts[parent]
        parts[parent] = (whole - apart) / 2
        parts.append((whole + apart) / 2)
    return torch.stack(parts, 1)
