"""Turn the bits that a weight may take, and see which layers get them, and what the network is worth then."""

from dfqlab.compression.allocation import allocate, sensitivities
from dfqlab.compression.insertion import prepare
from dfqlab.compression.quantization import quantize
from dfqlab.compression.spec import QuantizationSpec, Widths
from dfqlab.evaluation import LabelledBatches, evaluate
from dfqlab.figures import bits_by_layer
from dfqlab.images import ImageSource
from dfqlab.lab.controls import Notches
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Explorer
from dfqlab.teachers import Teacher


def bit_budget(teacher: Teacher, images: ImageSource, judge: LabelledBatches) -> Explorer:
    """A width for each layer's weights within a budget, shared out by what each layer loses on the images.

    Activations keep 8 bits, and roundings are to nearest.

    Args:
        teacher: what is quantized.
        images: what ranges and sensitivities are measured on.
        judge: real images, on which the network is compared with the teacher.
    """
    prepared = prepare(teacher, QuantizationSpec())
    losses = sensitivities(prepared, images)
    sizes = {path: layer.weight.numel() for path, layer in prepared.weights.items()}

    def draw(budget: float) -> Drawing:
        bits = allocate(losses, sizes, budget)
        model = quantize(teacher, images, layers={path: Widths(weights=width) for path, width in bits.items()})
        agreement = evaluate(model, judge).agreement_interval
        total = sum(losses[path][width] for path, width in bits.items())
        taken = sum(sizes[path] * width for path, width in bits.items()) / sum(sizes.values())
        sentence = (
            f"{budget:g} bits a weight allowed, {taken:.2f} taken: {model.packed_bytes:,} bytes, sum of losses "
            f"{total:.3g}, agreement with the teacher {agreement}."
        )
        title = f"{taken:.2f} bits a weight on average: agreement {agreement}"
        return Drawing(bits_by_layer(bits, sizes, title=title), sentence)

    return Explorer(draw, budget=Notches(3.0, tuple(2 + step / 4 for step in range(25))))
