"""kernels/README.md and its pictures from the results files: no measured number in it is typed by hand.

python -m benchmarks.kernels_readme
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import kernel_roofline
from benchmarks.kernel_goals import GOALS
from dfqlab.checkpoints import write_bytes
from dfqlab_kernels.bench.cases import DTYPES, OURS
from dfqlab_kernels.bench.registry import BENCHES
from dfqlab_kernels.bench.table import COMPETITORS, floor_share, ratio

README = Path(__file__).parents[1] / "kernels" / "README.md"
MISSING = "not measured"
_KINDS = {"cuda": "On a GPU", "cpu": "On a CPU"}
_DIRECTIONS = {"forward": "forward", "both": "forward + backward"}

_HEAD = """# dfqlab_kernels

The hot paths of dfqlab: pretending to be an integer, and reading what a batch does to a BatchNorm layer. Triton on an
NVIDIA GPU; elsewhere the definition in plain torch, which torch.compile fuses. `make bench` measures on the machine at
hand and rewrites this page; what was not measured says so. [GPU.md](GPU.md) lists what waits for a GPU.

| op | what it does |
| --- | --- |
| `fake_quantize` | to the integer grid and back, per tensor or per channel; straight-through gradient |
| `learned_step_quantize` | the same with gradients for scale and zero point (LSQ, LSQ+) |
| `soft_round_quantize` | AdaRound's soft rounding of all weights at once, and its penalty |
| `channel_stats` | mean and variance of each channel, of the batch or of each sample |
| `tap_channel_stats` | hands x on and keeps its moments; both gradients reach x in one pass |
| `bn_activation_stats` | BatchNorm in eval mode, residual, activation and moments from one read |
| `merge_moments` | mean and variance of all layers from their moments: one launch gathers, one merges |
| `bn_alignment` | the loss of all layers from those, a launch for the distances of all, and its gradient |

## How they are made

- A tensor is `(groups, outer, channels, inner)`, dense, innermost last: NCHW is (1, n, c, h·w), channels_last is
  (1, n·h·w, c, 1), statistics per sample have a group for each. One program text serves every layout.
- A program owns a tile of that, 2,048 elements, or walks over several of one block of channels. How many programs
  there are follows from the shape, never from the machine, so the same input gives the same bits.
- Sums have one order: each program writes the count, the mean and the squared deviations of its part, and the parts
  are merged in the order in which they lie (Chan, Golub and LeVeque 1983). There are no atomics.
- What a backward pass needs is little: one bit for each element (`fake_quantize`), or x, read again.
- All layers share a launch: moments of every layer are merged by one kernel, and compared with memory by another.
- Scales, zero points and targets are tensors that kernels read: nothing waits for the host, and CUDA graphs capture it.
- Launched from Python one by one, a few kernels keep the host as busy as torch's many: an op of ours has more to do
  before its kernel starts. Inversions on a GPU therefore replay loss and gradient as CUDA graphs.
- Arithmetic is float32 for float32, bfloat16 and float16, and float64 for float64.

## Bytes
"""

_STEPS = """## One step of an inversion

`python -m benchmarks.inversion_step`; its table is in [benchmarks/README.md](../benchmarks/README.md#inversion).
"""

_LEGEND = """
`ours` is the median in milliseconds with its 20 % and 80 % quantiles, caches flushed before every call, competitors in
turn within every round; `of floor` is the part of it that the fewest bytes need at that rate. The other columns say how
many times as long as ours a competitor takes: the formula in plain torch (`eager`), with a rounding that is an
autograd.Function (`function`), torch's own op (`torch`), DeepInversion's hook (`hook`), torch.compile of the formula
(`compile`), and for the fused layer the tap that leaves BatchNorm as it is (`tap`). `whole dy`: the gradient passes
everywhere. `x kept`: the backward pass makes the mask again from x.
"""

# Bytes of generated code, forward and backward, in units of x: read from the Triton code that Inductor 2.15 writes for
# such a GPU. An approximate one was not dumped but follows from the others.
_COMPILED = {
    "clipped": "2 + ~2.25", "lsq tensor": "2 + 3", "lsq channel": "2 + 5", "soft": "3.25 + 3.25",
    "stats": "1 + 3", "layer": "3.25 + 4.25",
}  # fmt: skip
_BYTES = [
    ("fake_quantize, per tensor", "fake_quantize", "per tensor", "clipped"),
    ("fake_quantize, per channel", "fake_quantize", "per channel", "clipped"),
    ("learned_step_quantize, per tensor", "learned_step_quantize", "per tensor", "lsq tensor"),
    ("learned_step_quantize, per channel", "learned_step_quantize", "per channel", "lsq channel"),
    ("soft_round_quantize", "soft_round_quantize", "", "soft"),
    ("statistics loss, all layers", "statistics_loss_resnet18", "", "stats"),
    ("fused layer, all layers", "fused_layer_resnet18", "", "layer"),
]


def render() -> None:
    """Rewrite the page and draw the pictures."""
    kernel_roofline.main()
    write_bytes(README, page().encode())


def page() -> str:
    """The page, with "not measured" where there is no results file."""
    results = [json.loads(path.read_text()) for path in kernel_roofline.device_files()]
    parts = [_HEAD, _bytes(results), _goals(results), _STEPS]
    for kind, title in _KINDS.items():
        found = [result for result in results if result["device"]["kind"] == kind]
        parts += [_device(title, result) for result in found] or [_no_device(title)]
    return "\n".join(parts)


def _bytes(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for title, op, label, compiled in _BYTES:
        pair = _pair(results, op, label)
        counted = [_counted(pair, who) for who in ("eager", "function", "torch", "hook")]
        if op == "learned_step_quantize" and counted[2] != MISSING:
            counted[2] = f"more than {counted[2]}"  # it makes full-size gradients of scale and zero point inside
        rows.append([title, _floor(pair), *counted, _COMPILED[compiled]])
    header = ["what", "floor", "eager", "function", "torch's op", "hook", "torch.compile"]
    return f"""Forward + backward, float32, in units of x: time is bytes, as long as arithmetic is free.

{_table(header, rows)}

Counted: the floor is what has to be read and written once, a mask at one bit an element; it is also what the kernels
move, their partial sums apart. Eager, torch's op (`torch.fake_quantize_*`, its learnable ones, `var_mean`) and
DeepInversion's hook are counted operator by operator while they run (`dfqlab_kernels.bench.counting`: what every
operator that is not a view takes and returns; what one moves inside, as torch's learnable ones do, is not seen).
torch.compile is read from the Triton code that Inductor of torch 2.15 generates for an H200, at ResNet-18's shapes; it
was not run for this table.
"""


def _pair(results: Sequence[dict[str, Any]], op: str, label: str) -> dict[str, Any]:
    """The first float32 case of an op, by direction."""
    for result in results:
        matching = [r for r in result["rows"] if (r["op"], r["dtype"]) == (op, "float32")]
        for first in matching:
            if first["label"].startswith(label):
                alike = [r for r in matching if (r["label"], r["layout"]) == (first["label"], first["layout"])]
                return {r["direction"]: r for r in alike}
    return {}


def _floor(pair: dict[str, Any]) -> str:
    if len(pair) < 2:
        return MISSING
    return _sum([pair[d]["floor_bytes"] / _size(pair[d]) for d in ("forward", "both")])


def _counted(pair: dict[str, Any], who: str) -> str:
    if len(pair) < 2:
        return MISSING
    counted = [pair[d]["counted_bytes"].get(who) for d in ("forward", "both")]
    return "" if None in counted else _sum([c / _size(pair["both"]) for c in counted])


def _sum(forward_and_both: Sequence[float]) -> str:
    forward, both = forward_and_both
    return f"{forward:.3g} + {both - forward:.3g}"


def _size(row: dict[str, Any]) -> int:
    return int(row["elements"]) * DTYPES[row["dtype"]].itemsize


def _goals(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for goal in GOALS:
        found = [result for result in results if result["device"]["kind"] == goal.kind]
        verdicts = [f"{goal.verdict(r['rows'])} ({r['device']['name']})" for r in found]
        measured = [v for v in verdicts if not v.startswith(MISSING)]
        rows.append([goal.what, goal.measure, goal.wish, "; ".join(measured) or MISSING])
    return f"## Goals\n\n{_table(['what', 'measure', 'wanted', 'measured'], rows)}\n"


def _no_device(title: str) -> str:
    rows = [[f"`{op}`", MISSING] for op in BENCHES]
    return f"## {title}\n\n{_table(['op', 'measured'], rows)}\n"


def _device(title: str, result: dict[str, Any]) -> str:
    rates = result["rates"][-1]
    picture = kernel_roofline.picture_of(Path("bench/results") / f"{result['device']['slug']}.json").as_posix()
    drawn = f"![roofline]({picture})\n\n" if kernel_roofline.points_of(result) else ""
    head = (
        f"## {title}: {result['device']['name']}\n\nIt copies {rates['copy'] / 1e9:.0f} GB a second and reads "
        f"{rates['read'] / 1e9:.0f}, measured before the ops.\n{_LEGEND}\n{drawn}"
    )
    return head + "\n".join(_op(op, [r for r in result["rows"] if r["op"] == op]) for op in BENCHES)


def _op(op: str, rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return f"### {op}\n\n{MISSING}\n"
    shown = [who for who in COMPETITORS if any(who in r["times"] or who in r["failed"] for r in rows)]
    body = [[*_what(row), _ours(row), _share(row), *(_ratio(row, who) for who in shown)] for row in rows]
    table = _table(["case", "", "ours", "of floor", *shown], body)
    measured = "; ".join(dict.fromkeys(f"{_versions(row)}, {row['date']}" for row in rows))
    return f"### {op}\n\n{measured}\n\n{table}\n{_launch_bound(rows)}"


def _launch_bound(rows: Iterable[dict[str, Any]]) -> str:
    """Wall clock, launches and CUDA graphs, where launches decide."""
    rows = [row for row in rows if "launches" in row]
    if not rows:
        return ""
    names = [OURS, *(who for who in COMPETITORS if any(who in row["wall"] for row in rows))]
    body = [
        [
            *_what(row),
            " / ".join(str(row["launches"].get(who) or "?") for who in names),
            " / ".join(_median(row["wall"], who) for who in names),
            " / ".join(_median(row["captured"], who) for who in names),
        ]
        for row in rows
    ]
    header = ["case", "", "launches", "ms, launches included", "ms in a CUDA graph"]
    return f"\nIn each cell {' / '.join(names)}:\n\n{_table(header, body)}\n"


def _what(row: dict[str, Any]) -> list[str]:
    return [row["label"], " ".join(filter(None, [row["dtype"], row["layout"], _DIRECTIONS[row["direction"]]]))]


def _ours(row: dict[str, Any]) -> str:
    return _milliseconds(row["times"][OURS]) if OURS in row["times"] else row["failed"][OURS]


def _share(row: dict[str, Any]) -> str:
    return f"{100 * floor_share(row):.0f} %" if OURS in row["times"] else ""


def _ratio(row: dict[str, Any], who: str) -> str:
    found = ratio(row, who)
    return "fails" if who in row["failed"] else "" if found is None else f"{found:.2f}x"


def _median(times: dict[str, Any], who: str) -> str:
    return f"{1e3 * times[who]['median']:.3g}" if who in times else "?"


def _milliseconds(time: dict[str, float]) -> str:
    return f"{1e3 * time['median']:.3g} [{1e3 * time['low']:.3g}, {1e3 * time['high']:.3g}]"


def _versions(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in row["versions"].items())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    render()
