"""`report.html` needs nothing but itself, holds the numbers, and shows what comes from outside as text."""

import base64
import dataclasses
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from dfqlab.errors import DataError, OutputError
from dfqlab.measures import Interval
from dfqlab.report import Pictures, RunReport, SecondRuntime, write_report
from dfqlab.report.page import render
from dfqlab.report.record import record
from dfqlab.trust import Belief, Judgement

VOID = {"meta", "link", "img", "br", "hr"}
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"


class Page(HTMLParser):
    """The page as a browser takes it: its elements, its text, and that every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(content: RunReport) -> Page:
    return Page(render(content))


def _nothing_from_elsewhere(page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "base", "form", "svg"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)


def test_nothing_comes_from_elsewhere(content: RunReport, page: Page) -> None:
    _nothing_from_elsewhere(page)
    html = render(content)
    assert not re.search(r"https?://|//\w|@import|url\(", re.sub(r"base64,[^\"]+", "", html))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_is_a_png_with_words_for_it(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == 5
    for picture in pictures:
        kind, _, data = str(picture["src"]).partition("base64,")
        assert kind == "data:image/png;"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
        assert len(picture["alt"] or "") > 20


def test_the_sentence_is_the_headline_and_comes_first(content: RunReport) -> None:
    html = render(content)
    headline = re.search(r"<h1>(.*?)</h1>", html)
    assert headline
    assert headline[1].replace("\u00a0", " ") == content.sentence
    assert html.index("<h1>") < html.index("<img") < html.index("<table") < html.index("<pre>")


def test_the_page_holds_the_numbers_of_the_record(content: RunReport, page: Page) -> None:
    numbers = record(content)
    shares = [row[key] for row in numbers["rows"] for key in ("accuracy", "agreement")] + [numbers["teacher_accuracy"]]
    expected = [f"{100 * s['value']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in shares]
    expected += [f"{row['sqnr']:.1f} dB" for row in numbers["rows"]]
    expected += ["143.2 kB", "46.2 kB", "23.9 kB", "0.214 ms", "0.074 ms", "2.91 times", "2.71 to 3.08", "201 pairs"]
    expected += ["batches of 2 and 3 threads", "34,122 parameters", "1×16×17", "11 classes", "4-bit weights"]
    expected += ["3-bit activations", "128 images with seed 5, 503 steps in 21.3 s", "3.21 to 0.0421", "99.8 %"]
    expected += ["52.3 dB", "0 of 1,204,225 codes differ", "7 of 98,304", "Integer convolutions: 3 of 3"]
    for check in numbers["certificate"]["checks"]:
        expected.append("".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in check.values()))
    expected += ["".join(line.values()) for line in numbers["placement"]]
    expected += [
        "1 of 2 equalized, 13 channels split",
        "stem.0blocks.0.0yes13",
        "no03 operations read what it puts out",
    ]
    expected += numbers["openvino"]["certificate"]["warnings"]
    expected += [numbers["fingerprint"], numbers["command"], "batch 128, float32, eager", "torch 2.15.0"]
    expected += ["calibration: mse", "rounding: nearest", *numbers["warnings"], *numbers["certificate"]["warnings"]]
    assert [number for number in expected if _spaceless(number) not in _spaceless(page.text)] == []


def test_an_openvino_that_could_not_be_timed_says_so_beside_its_certificate(content: RunReport) -> None:
    assert content.openvino is not None
    found = replace(content.openvino, latency=None, missing="It cannot load the float model.")
    text = Page(render(replace(content, openvino=found))).text
    assert "OpenVINO, 1,204,226 codes" in text.replace("\u00a0", " ")
    assert "Speed was not measured. It cannot load the float model." in text.replace("\u00a0", " ")


def _spaceless(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_what_comes_from_outside_is_shown_as_text(content: RunReport) -> None:
    page = Page(render(_hostile(content)))
    _nothing_from_elsewhere(page)
    assert page.text.count(" ".join(HOSTILE.split())) >= 15
    assert "49" not in page.text


def _hostile(value: Any) -> Any:
    """The value with every string in it replaced, kinds aside."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name != "kind"]
        return replace(value, **{name: _hostile(getattr(value, name)) for name in names})
    if isinstance(value, tuple):
        return tuple(map(_hostile, value))
    if isinstance(value, dict):
        return {HOSTILE + str(key): _hostile(item) for key, item in value.items()}
    return HOSTILE if isinstance(value, str) else value


def test_judges_without_real_data_stand_side_by_side_with_what_they_contradict(content: RunReport) -> None:
    judged = replace(
        content,
        judgements=(
            Judgement("zeroq, seed 6", "held out", Interval(0.951, 0.93, 0.962), 18.25, {"stem": 21.75, "head": 17.5}),
            Judgement("dsg, seed 6", "held out", Interval(0.703, 0.68, 0.721), 12.5, {"stem": 20.5, "head": 16.25}),
            Judgement("BatchNorm's Gaussians", "BatchNorm", None, None, {"stem": 20.25, "head": 16.75}),
        ),
        beliefs=(Belief("cifar10/resnet20", "W4A4", 24, Interval(0.31, -0.13, 0.64), 5000),),
    )
    text = " ".join(" ".join(Page(render(judged)).words).split()).replace("\u00a0", " ")
    for found in (
        "95.1 % [93.0, 96.2]",
        "70.3 % [68.0, 72.1]",
        "18.2 dB",
        "17.5 dB",
        "16.8 dB",
        "Believe the lower one",
    ):
        assert found in text
    assert "0.31 [-0.13, 0.64]; such an estimate is not to be believed" in text
    assert "What to believe" not in render(content)


def test_a_partial_set_is_told_at_the_top(content: RunReport) -> None:
    html = render(replace(content, images=replace(content.images, partial=True)))
    assert html.index("<h1>") < html.index("Partial images.") < html.index('<dl class="facts">')
    assert "Partial images." not in render(content)


def test_a_certificate_that_does_not_hold_is_told_at_the_top(content: RunReport) -> None:
    broken = replace(content.certificate, holds=False, sentence="Does not hold: 12 codes differ.")
    html = render(replace(content, certificate=broken))
    assert html.index("<h1>") < html.index("Does not hold: 12 codes differ.") < html.index('<dl class="facts">')
    assert "<dd>does not hold</dd>" in html
    assert "<dd>holds</dd>" in render(content)


def test_what_is_missing_is_not_pretended(content: RunReport) -> None:
    rows = tuple(replace(row, accuracy=None) for row in content.rows[:3])
    bare = replace(content, latency=None, certificate=None, judged_on=None, teacher_accuracy=None, rows=rows)
    page = Page(render(bare))
    assert "Speed was not measured." in page.text
    assert "its integer arithmetic was not checked" in page.text
    assert "Nothing about accuracy." in page.text
    assert "this is agreement with the teacher, not accuracy" in page.text
    assert "One machine." not in page.text
    assert "96.8" not in page.text
    assert "agreement with the teacher on 599 synthetic images" in " ".join(str(img["alt"]) for img in page.all("img"))


def test_without_pictures_there_is_still_a_page(content: RunReport) -> None:
    pictures = Pictures(torch.zeros(0, 1, 8, 8), (), (), (), {})
    images = replace(content.images, first_loss=None, last_loss=None, loss_curve=())
    page = Page(render(replace(content, pictures=pictures, images=images, rows=(), placement=())))
    assert page.all("img") == []
    assert "What BatchNorm layers saw" not in page.text


def test_only_a_model_without_real_data_is_said_to_be_without(content: RunReport) -> None:
    assert "quantized without its data" in render(content)
    assert "without its data" not in render(replace(content, used="digits"))


def test_the_same_content_gives_the_same_bytes(content: RunReport, tmp_path: Path) -> None:
    first, second = write_report(content, tmp_path / "a"), write_report(content, tmp_path / "b")
    assert first == tmp_path / "a" / "report.html"
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".json").read_bytes() == second.with_suffix(".json").read_bytes()
    assert json.loads(first.with_suffix(".json").read_text()) == json.loads(json.dumps(record(content)))


def test_a_page_that_cannot_be_made_leaves_the_old_one(content: RunReport, tmp_path: Path) -> None:
    path = write_report(content, tmp_path)
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()
    crooked = replace(content.pictures, bn_distances={"zeroq": (1.0,)})
    with pytest.raises(DataError, match="'zeroq' has 1 values for 3 layers"):
        write_report(replace(content, teacher="another", pictures=crooked), tmp_path)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_place_that_cannot_be_written_is_told(content: RunReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(content, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_is_not_unicode_is_no_obstacle(content: RunReport, tmp_path: Path) -> None:
    path = write_report(replace(content, command="dfqlab --out caf\udce9"), tmp_path)
    assert "dfqlab" in path.read_text(encoding="utf-8")


def test_who_recognises_the_images_and_how_diverse_they_are_stand_beside_them(content: RunReport) -> None:
    text = Page(render(content)).text
    assert "digits/mobilenet takes 83.1 % [75.7, 88.6] of them for it; digits/vgg takes 41.2 %" in text
    assert "made from the network and digits/vgg" in text
    assert "Distance from Gaussian: of blocks.0.1," in text
    for number in ("0.00345", "0.00456", "0.251", "0.14"):
        assert number in text
    assert record(content)["diversity"][1]["std_variance"] == 0.00456
    assert record(content)["images"]["recognised"]["digits/vgg"]["value"] == 0.412


def test_images_without_labels_and_networks_without_batch_norm_leave_that_out(content: RunReport) -> None:
    plain = replace(content, images=replace(content.images, recognised={}, zoo=()), diversity=())
    text = Page(render(plain)).text
    assert "for it" not in text
    assert "Distance from Gaussian" not in text
    assert "made from the network alone" in text


def test_a_second_runtime_has_a_certificate_and_a_latency_of_its_own(content: RunReport) -> None:
    text = Page(render(content)).text
    for said in (
        "Holds: OpenVINO, 1,204,226 codes, 3 differ.",
        "99.7 %",
        "48.7 dB",
        "0.198 ms",
        "0.053 ms",
        "3.7x faster",
    ):
        assert said in text
    assert record(content)["openvino"]["latency"]["ratio_high"] == 3.92


def test_why_there_is_no_second_runtime_is_said(content: RunReport) -> None:
    missing = SecondRuntime(None, None, 'pip install "dfqlab[openvino]"')
    text = Page(render(replace(content, openvino=missing))).text
    assert 'Not checked. pip install "dfqlab[openvino]"' in text
    assert "OpenVINO" not in Page(render(replace(content, openvino=None))).text
