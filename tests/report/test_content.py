"""The sentence that matters first is true in every case."""

from dataclasses import replace

import pytest

from dfqlab.deployment import Certificate
from dfqlab.measures import Interval
from dfqlab.report import CertificateSummary, RunReport, Sizes, SourceRow
from dfqlab.report.content import Latency


def _latency(ratio: float, low: float, high: float) -> Latency:
    return Latency(ratio, 1.0, ratio, low, high, 1, 1, 100)


def test_the_sentence_tells_size_speed_and_agreement(content: RunReport) -> None:
    assert content.sentence == (
        "W4A3, 3.1x smaller, 2.9x faster, agrees with the teacher on 97.8 % [97.0, 98.4] of 599 held-out digits"
    )


@pytest.mark.parametrize(
    ("float_onnx", "quantized_onnx", "phrase"),
    [
        (4000, 1000, "4.0x smaller"),
        (1000, 1200, "1.2x larger"),
        (1040, 1000, "1.04x smaller"),
        (1000, 1040, "1.04x larger"),
        (1096, 1000, "1.1x smaller"),
        (1000, 1000, "no smaller"),
        (1000, 1001, "no smaller"),
    ],
)
def test_a_file_that_is_larger_is_called_larger(float_onnx: int, quantized_onnx: int, phrase: str) -> None:
    assert Sizes(float_onnx, quantized_onnx, 1).phrase == phrase


@pytest.mark.parametrize(
    ("latency", "phrase"),
    [
        (_latency(2.91, 2.7, 3.1), "2.9x faster"),
        (_latency(0.77, 0.7, 0.83), "1.3x slower on this machine"),
        (_latency(1.06, 1.02, 1.1), "1.06x faster"),
        (_latency(0.95, 0.93, 0.99), "1.05x slower on this machine"),
        (_latency(1.3, 0.9, 1.6), "as fast as the float model within this machine's noise"),
        (None, "speed not measured"),
    ],
)
def test_a_slower_model_is_called_slower(content: RunReport, latency: Latency | None, phrase: str) -> None:
    assert f"smaller, {phrase}, agrees" in replace(content, latency=latency).sentence


def test_without_real_data_the_sentence_says_that_this_is_not_accuracy(content: RunReport) -> None:
    sentence = replace(content, judged_on=None, judged_images=256).sentence
    assert sentence.endswith(
        "agrees with the teacher on 97.8 % [97.0, 98.4] of 256 synthetic images "
        "(not the ones it was calibrated with; no real data was at hand, so this is not accuracy)"
    )


@pytest.mark.parametrize("judged_on", ["599 held-out digits", None])
def test_what_was_not_measured_is_not_told(content: RunReport, judged_on: str | None) -> None:
    rows = tuple(replace(row, agreement=None) for row in content.rows)
    for changes in ({"rows": rows}, {"rows": ()}, {"used": "mixmix"}):
        sentence = replace(content, judged_on=judged_on, **changes).sentence
        assert sentence == "W4A3, 3.1x smaller, 2.9x faster, agreement with the teacher not measured"


def test_a_model_that_was_not_calibrated_on_synthetic_images_says_so(content: RunReport) -> None:
    assert replace(content, used="digits").sentence.startswith("W4A3 calibrated on real: digits, 3.1x smaller")
    assert replace(content, used="noise").sentence.startswith("W4A3 calibrated on noise, 3.1x smaller")


def test_a_row_tells_its_kind() -> None:
    share = Interval(0.9, 0.8, 1.0)
    assert SourceRow("real digits", "real", share, share, 1.0).label == "real digits"
    assert SourceRow("CIFAR-10", "real", share, share, 1.0).label == "real: CIFAR-10"
    assert SourceRow("mixmix", "synthetic", share, share, 1.0).label == "mixmix"


def test_a_summary_is_read_off_a_certificate(content: RunReport) -> None:
    summary = content.certificate
    certificate = Certificate(summary.checks, 3, 2, 64, 0.9981, 52.3, ("This CPU may saturate.",))
    assert CertificateSummary.of(certificate) == replace(
        summary, holds=False, sentence=certificate.sentence, codes=1_204_224, integer_convolutions=2
    )
