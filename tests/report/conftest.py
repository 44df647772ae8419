"""A report of a run that never was: every number is another one, so that a test sees where it stands."""

import math

import pytest
import torch

from dfqlab.report.content import (
    CertificateSummary,
    ChainRow,
    Diversity,
    ImagesMade,
    Interval,
    Latency,
    LayerCheck,
    Pictures,
    PlacementRow,
    RunReport,
    SecondRuntime,
    Sizes,
    SourceRow,
)

LAYERS = ("stem.1", "blocks.0.1", "head.1")


@pytest.fixture(scope="session")
def content() -> RunReport:
    """W4A4 of a small network: smaller, faster, certified, judged on real data."""
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return RunReport(
        teacher="digits/mobilenet",
        fingerprint="9f2c" * 16,
        parameters=34_122,
        input_size=(1, 16, 17),
        classes=11,
        label="W4A3",
        weights=4,
        activations=3,
        calibration="mse",
        equalization="none",
        rounding="nearest",
        judged_on="599 held-out digits",
        judged_images=599,
        teacher_accuracy=Interval(0.987, 0.974, 0.993),
        rows=(
            SourceRow("noise", "noise", Interval(0.912, 0.887, 0.932), Interval(0.918, 0.893, 0.937), 11.2),
            SourceRow(
                "clipped noise", "clipped noise", Interval(0.871, 0.841, 0.895), Interval(0.876, 0.848, 0.9), 9.8
            ),
            SourceRow("zeroq", "synthetic", Interval(0.968, 0.951, 0.979), Interval(0.978, 0.97, 0.984), 17.9),
            SourceRow("digits", "real", Interval(0.977, 0.961, 0.986), Interval(0.985, 0.971, 0.992), 19.3),
        ),
        used="zeroq",
        sizes=Sizes(143_220, 46_200, 23_900),
        latency=Latency(0.214, 0.074, 2.91, 2.71, 3.08, 2, 3, 201),
        certificate=CertificateSummary(
            holds=True,
            sentence="Holds: 1,204,225 codes, 0 differ.",
            checks=(
                *(LayerCheck(name, "QLinearConv", 401_408, 0, 0) for name in LAYERS),
                LayerCheck("add", "QLinearAdd", 98_304, 7, 1),
            ),
            codes=1_204_225,
            differences=0,
            near_codes=98_304,
            near_differences=7,
            convolutions=3,
            integer_convolutions=3,
            top1_agreement=0.9981,
            sqnr=52.3,
            warnings=("This CPU may saturate.",),
        ),
        images=ImagesMade(
            "zeroq",
            128,
            5,
            503,
            21.34,
            False,
            "batch 128, float32, eager",
            3.21,
            0.0421,
            ((1, 3.21), (2, 1.5), (503, 0.0421)),
            {"digits/mobilenet": Interval(0.831, 0.757, 0.886), "digits/vgg": Interval(0.412, 0.331, 0.503)},
            ("digits/vgg",),
        ),
        pictures=Pictures(
            images,
            tuple(f"teacher: {i}" for i in range(6)),
            tuple((step, images[:2] * scale) for step, scale in ((0, 0.2), (100, 0.6), (503, 1.0))),
            LAYERS,
            {
                "noise": (3.0, 4.0, 5.0),
                "clipped noise": (1.0, 2.0, 3.0),
                "zeroq": (0.1, 0.2, 0.3),
                "digits": (0.2, math.nan, 0.1),
            },
        ),
        placement=(
            PlacementRow("input", "input", "8", "uint8, affine"),
            PlacementRow("stem.0", "conv2d", "4 / 3", "uint8, affine"),
        ),
        chains=(
            ChainRow("stem.0", "blocks.0.0", True, 13, ""),
            ChainRow("blocks.0.0", "", False, 0, "3 operations read what it puts out"),
        ),
        command="dfqlab quantize --teacher digits/mobilenet --weights 4 --activations 3 --seed 5",
        versions={"dfqlab": "0.1.0", "torch": "2.15.0"},
        warnings=("The job ran uncompiled.",),
        diversity=(
            Diversity("noise", 0.911, 0.00123, 0.00234, 0.0012),
            Diversity("zeroq", 0.251, 0.00345, 0.00456, 0.1377),
        ),
        diversity_layer="blocks.0.1",
        openvino=SecondRuntime(
            CertificateSummary(
                holds=True,
                sentence="Holds: OpenVINO, 1,204,226 codes, 3 differ.",
                checks=(),
                codes=1_204_226,
                differences=3,
                near_codes=98_305,
                near_differences=8,
                convolutions=3,
                integer_convolutions=3,
                top1_agreement=0.9973,
                sqnr=48.7,
                warnings=("executed in float: 1 convolution or linear layer",),
            ),
            Latency(0.198, 0.053, 3.74, 3.61, 3.92, 2, 1, 201),
        ),
    )
