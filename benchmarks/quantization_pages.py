"""What parts of post-training quantization do, as Markdown."""

from benchmarks.markdown import points, share, table
from benchmarks.paper_pages import Page, Result
from benchmarks.quantization_tables import MIXED, RUNTIMES, UNIFORM, WAYS

_NAMES = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}


def rescaled(result: Result) -> str:
    """Ways to quantize across, networks down."""
    cells = {(row["network"], row["way"]): row for row in result["rows"]}
    networks = list(dict.fromkeys(row["network"] for row in result["rows"]))
    body = [
        [
            network,
            f"{100 * cells[network, next(iter(WAYS))]['float']:.1f}",
            *(share(cells[network, way]["accuracy"]) if (network, way) in cells else "" for way in WAYS),
        ]
        for network in networks
    ]
    return (
        f"{result['target']} at W8A8, all layers, ranges from what BatchNorm remembers; no image is looked at. "
        "Executed by torch. Rescaled: what two convolutions of a block hand each other is multiplied by 2^U(-4, 4), "
        "channel by channel, and divided where it is read, so that the network computes what it did. Accuracy in per "
        "cent.\n\n" + table(["network", "float", *WAYS], body)
    )


def frontier(result: Result) -> str:
    """Both ways to spend the same bits, side by side."""
    text = [
        "Activations at 8 bits, MSE ranges from zeroq's images, nearest rounding; the sensitivity of a layer is "
        "measured on 64 of them, and an integer program chooses the widths. Sizes are those of weights alone. "
        "Executed by torch."
    ]
    for row in result["rows"]:
        uniform = {round(point["mean_bits"], 3): point for point in row["points"][UNIFORM]}
        mixed = {point["budget"]: point for point in row["points"][MIXED]}
        body = [
            [
                f"{bits:g}",
                f"{row['weights'] * bits / 8000:.1f}",
                share(mixed[bits]["accuracy"]) if bits in mixed else "",
                share(uniform[bits]["accuracy"]) if bits in uniform else "",
                points(mixed[bits]["minus_one_width"]) if "minus_one_width" in mixed.get(bits, {}) else "",
                _spread(mixed[bits]["widths"]) if bits in mixed else "",
            ]
            for bits in sorted(mixed.keys() | uniform.keys())
        ]
        header = ["bits of a weight, at most", "kB", MIXED, UNIFORM, "difference", "layers by bits"]
        text.append(f"{row['target']}, {100 * result['float'][row['target']]:.1f} in float.\n\n{table(header, body)}")
    return "\n\n".join(text)


def certificate(result: Result) -> str:
    """What differs, of how much, by runtime."""
    body = []
    for row in result["rows"]:
        for runtime in RUNTIMES:
            found = row["runtimes"][runtime]
            body.append(
                [
                    row["target"],
                    row["width"],
                    _NAMES[runtime],
                    "yes" if found["holds"] else f"no: {'; '.join(found['why not'])}",
                    "{} of {}".format(*found["convolutions"]),
                    *(f"{found[kind]['differences']:,} of {found[kind]['codes']:,}" for kind in ("exact", "near")),
                    f"{100 * found['agreement']:.1f}",
                    f"{found['sqnr']:.1f}",
                ]
            )
    header = [
        "network", "width", "runtime", "holds", "convolutions in integers", "codes of convolutions and linear layers "
        "that differ", "of additions, poolings, concatenations", "same class as torch, %", "SQNR of logits, dB",
    ]  # fmt: skip
    return (
        "Calibrated and certified on noise of valid pixels, MSE ranges, nearest rounding. Every integer operation is "
        "fed with the codes that the runtime itself computed in front of it; the largest difference is one code "
        f"wherever the certificate holds.\n\n{table(header, body)}"
    )


def _spread(widths: dict[str, int]) -> str:
    """2: 3, 4: 17: three layers of two bits."""
    counts = {bits: list(widths.values()).count(bits) for bits in sorted(set(widths.values()))}
    return ", ".join(f"{bits}: {count}" for bits, count in counts.items())


PAGES = (
    Page("quantization", "rescaled", "Equalization, where channels differ in scale", rescaled, ("cpu",)),
    Page("quantization", "frontier", "A width for each layer: ZeroQ's frontier", frontier),
    Page("quantization", "certificate", "The certificate at five widths, in two runtimes", certificate, ("cpu",)),
)
