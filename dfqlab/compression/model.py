"""`CompressedModel`: integers, scales, specification, provenance. What is saved, run, evaluated and exported."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from dfqlab import checkpoints
from dfqlab.compression.integers import GlobalAveragePool, IntegerConv2d, IntegerLinear, Requantize
from dfqlab.compression.prepared import ChainRow, PlacementRow
from dfqlab.compression.serialization import graph_from_json, graph_to_json
from dfqlab.compression.spec import QuantizationSpec
from dfqlab.errors import CheckpointError, DataError
from dfqlab.teachers import InputSpec, Teacher

FILE_NAME = "model.safetensors"


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A quantized network. Calling it gives the logits of images in pixel units (0..1), computed as integers would.

    Attributes:
        graph: normalised images to logits; its layers hold int8 codes, int32 biases and float32 scales.
        input: size and normalisation of an image.
        classes: a name for each class.
        spec: what was asked for.
        table: what was placed where.
        provenance: teacher, its fingerprint, where the calibration images came from.
        teacher: what it was made from, to compare with; not saved.
        chains: which neighbouring layers were equalized or split, and why the others were not.
    """

    graph: fx.GraphModule
    input: InputSpec
    classes: tuple[str, ...]
    spec: QuantizationSpec
    table: tuple[PlacementRow, ...]
    provenance: Mapping[str, Any]
    teacher: Teacher | None = None
    chains: tuple[ChainRow, ...] = ()

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images in pixel units (0..1).

        Raises:
            DataError: images of another size.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.input.size:
            raise DataError(
                f"the model takes images (n, {', '.join(map(str, self.input.size))}), got {tuple(images.shape)}"
            )
        with torch.no_grad():
            logits: Tensor = self.graph(self.input.normalize(images))
        return logits

    @property
    def device(self) -> torch.device:
        """Where its integers are."""
        return next(self.graph.buffers()).device

    @property
    def layers(self) -> dict[str, IntegerConv2d | IntegerLinear]:
        """The integer layers by the teacher's module paths, in forward order."""
        modules = (
            (str(n.target), self.graph.get_submodule(str(n.target)))
            for n in self.graph.graph.nodes
            if n.op == "call_module"
        )
        return {path: module for path, module in modules if isinstance(module, (IntegerConv2d, IntegerLinear))}

    @property
    def packed_bytes(self) -> int:
        """What the parameters take with codes packed to their bits; biases and scales take 4 bytes each.

        What stayed float counts as it is.
        """
        total = 0
        for module in self.graph.modules():
            if isinstance(module, (IntegerConv2d, IntegerLinear)):
                total += math.ceil(module.codes.numel() * module.bits / 8) + 4 * module.scale.numel()
                total += 0 if module.bias_codes is None else 4 * module.bias_codes.numel()
            elif isinstance(module, Requantize):
                total += 5
            elif not isinstance(module, GlobalAveragePool):  # whose scale is that of its quantizer
                total += sum(t.nbytes for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        return total

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` into a directory: integers, scales, the graph as JSON; no pickle.

        Raises:
            OutputError: the place cannot be written; what was there before is still there.
            QuantizationError: a float part of the network cannot be described as JSON; names it.
        """
        facts = {
            "graph": graph_to_json(self.graph),
            "input": asdict(self.input),
            "classes": list(self.classes),
            "spec": self.spec.as_dict(),
            "table": [asdict(row) for row in self.table],
            "chains": [asdict(row) for row in self.chains],
            "provenance": dict(self.provenance),
        }
        checkpoints.save(Path(directory) / FILE_NAME, self.graph.state_dict(), kind="compressed model", facts=facts)


def load_model(directory: str | os.PathLike[str], *, leaves: Mapping[str, nn.Module] | None = None) -> CompressedModel:
    """Load what `CompressedModel.save` wrote.

    Args:
        directory: as given to `save`.
        leaves: the opaque submodules of a teacher that had some, by their paths; their code is not in the file. They
            are copied and filled with the file's weights.

    Raises:
        CheckpointError: not such a directory, or its file is truncated, foreign or newer.
    """
    path = Path(directory) / FILE_NAME
    tensors, facts = checkpoints.load(path, kind="compressed model")
    try:
        graph = graph_from_json(facts["graph"], dict(leaves or {}))
        graph.load_state_dict(tensors)
        return CompressedModel(
            graph=graph.eval().requires_grad_(False),
            input=InputSpec(tuple(facts["input"]["size"]), tuple(facts["input"]["mean"]), tuple(facts["input"]["std"])),
            classes=tuple(facts["classes"]),
            spec=QuantizationSpec.from_dict(facts["spec"]),
            table=tuple(PlacementRow(**row) for row in facts["table"]),
            provenance=facts["provenance"],
            chains=tuple(ChainRow(**row) for row in facts.get("chains", ())),
        )
    except CheckpointError:
        raise
    except Exception as error:  # a damaged description can fail anywhere
        raise CheckpointError(f"{path} is not a complete compressed model: {error}") from error
