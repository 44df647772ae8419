"""Lessons in JupyterLab, as a learner has them: what is pressed, what can be read, whether the picture is another."""

import re
from collections.abc import Callable

from playwright.sync_api import Locator, expect

from benchmarks.browser import MILLISECONDS, Notebook

OpenLesson = Callable[[str], Notebook]
PROMPT = ".jp-InputPrompt"


def press(control: Locator, key: str) -> None:
    control.focus()
    control.page.keyboard.press(key)


def tab_to(control: Locator, at_most: int = 8) -> None:
    """Press Tab until the control has the focus."""
    for _ in range(at_most):
        control.page.keyboard.press("Tab")
        if control.evaluate("control => control === document.activeElement"):
            return
    raise AssertionError(f"{at_most} times Tab do not lead to {control}")


def is_a_picture(image: Locator) -> None:
    expect(image).to_be_visible(timeout=MILLISECONDS)
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100


def says(words: Locator, pattern: str) -> str:
    """Wait for words that match, and return them."""
    expect(words).to_have_text(re.compile(pattern), timeout=MILLISECONDS)
    return words.inner_text()


def test_sliders_and_menus_turn_the_picture_from_the_keyboard(open_lesson: OpenLesson) -> None:
    lesson = open_lesson("01")
    lesson.menu("Run", "Run All Cells")
    widget = lesson.cell("l01-widget")
    bits = widget.locator(".widget-slider", has_text="bits")
    picture, readout = widget.get_by_role("img"), widget.get_by_role("status")
    expect(bits.get_by_role("slider")).to_be_visible(timeout=MILLISECONDS)
    expect(bits.locator(".widget-label")).to_be_visible()
    expect(bits.locator(".widget-readout")).to_have_text("4")
    sentence, source = says(readout, r"^4 bits.* dB"), str(picture.get_attribute("src"))

    press(bits.get_by_role("slider"), "ArrowRight")
    expect(bits.locator(".widget-readout")).to_have_text("5")
    fine = says(readout, r"^5 bits.* dB")
    expect(picture).not_to_have_attribute("src", source)
    expect(picture).to_have_attribute("alt", fine)

    granularity = widget.get_by_role("combobox", name="granularity")
    tab_to(granularity)
    for key in ("Space", "ArrowDown", "Enter"):
        lesson.page.keyboard.press(key)
    finer = says(readout, r"^5 bits.*per channel.* dB")
    assert decibels(sentence) < decibels(fine) < decibels(finer)
    is_a_picture(picture)


def decibels(sentence: str) -> float:
    return float(re.findall(r"(-?[\d.]+) dB", sentence)[0])


class Experiment:
    """The widget of lesson 02, run up to where it stands."""

    def __init__(self, lesson: Notebook) -> None:
        lesson.run_all_above("l02-widget")
        lesson.run("l02-widget")
        self.lesson = lesson
        self.cell = lesson.cell("l02-widget")
        self.run = self.cell.get_by_role("button", name="Run")
        self.cancel = self.cell.get_by_role("button", name="Cancel")
        self.status = self.cell.get_by_role("status").first
        self.readout = self.cell.get_by_role("status").last
        self.bar = self.cell.locator(".progress-bar")
        expect(self.run).to_be_visible(timeout=MILLISECONDS)
        says(self.status, "^not started$")

    def keep_what_is_said(self) -> None:
        """Begin to write down every status and every sentence."""
        self.cell.evaluate(
            """cell => {
                window.said = [];
                const listen = () => cell.querySelectorAll("[role=status]").forEach(e => window.said.push(e.innerText));
                new MutationObserver(listen).observe(cell, {subtree: true, childList: true, characterData: true});
            }"""
        )

    def said(self) -> list[str]:
        """What was said since, or since this was asked last."""
        return list(self.lesson.page.evaluate("() => window.said.splice(0)"))


def test_an_experiment_runs_is_cancelled_and_runs_anew(open_lesson: OpenLesson) -> None:
    experiment = Experiment(open_lesson("02"))
    lesson, nothing_yet = experiment.lesson, experiment.readout.inner_text()
    empty = str(experiment.cell.get_by_role("img").get_attribute("src"))
    expect(experiment.cancel).to_be_disabled()
    experiment.keep_what_is_said()

    press(experiment.run, "Enter")
    says(experiment.status, r"^running, at step \d+ of 18")
    expect(experiment.run).to_be_disabled()
    expect(experiment.bar).not_to_have_attribute("style", re.compile(r"width: 0%"))
    expect(experiment.cell.get_by_role("img")).not_to_have_attribute("src", empty, timeout=MILLISECONDS)

    before = lesson.cell("l02-count").locator(PROMPT).inner_text()
    lesson.run("l02-count")
    expect(lesson.cell("l02-count").locator(PROMPT)).not_to_have_text(before)
    expect(lesson.cell("l02-count").locator(PROMPT)).to_have_text(re.compile(r"\d"), timeout=MILLISECONDS)
    expect(experiment.status).to_contain_text("running, at step")

    press(experiment.cancel, "Enter")
    says(experiment.status, r"^cancelled at step [1-9]\d* of 18$")
    experiment.said()

    expect(experiment.run).to_be_enabled()
    press(experiment.run, "Enter")
    says(experiment.status, r"^running, at step \d+ of 18")
    tab_to(experiment.cancel)
    lesson.page.keyboard.press("Enter")
    says(experiment.status, r"^cancelled at step [1-9]\d* of 18$")
    said = experiment.said()
    assert nothing_yet in said, f"the picture did not begin anew: {said}"
    steps = [int(step) for words in said for step in re.findall(r"running, at step (\d+)", words)]
    assert steps[0] == 1
    assert steps == sorted(steps)


def test_an_experiment_starts_beside_a_busy_cell(open_lesson: OpenLesson) -> None:
    experiment = Experiment(open_lesson("02"))
    busy = experiment.lesson.cell("l02-widget-twin")
    experiment.lesson.write("l02-widget-twin", "import time; time.sleep(100)")
    experiment.lesson.run("l02-widget-twin")
    expect(busy.locator(PROMPT)).to_have_text("[*]:")

    press(experiment.run, "Enter")
    says(experiment.status, r"^running, at step [1-9]\d* of 18")
    press(experiment.cancel, "Enter")
    says(experiment.status, r"^cancelled at step [1-9]\d* of 18$")
    expect(busy.locator(PROMPT)).to_have_text("[*]:")


def test_a_lesson_that_never_ran_shows_a_picture_under_each_widget(open_lesson: OpenLesson) -> None:
    lesson = open_lesson("01")
    is_a_picture(lesson.outputs("l01-widget-twin").locator("img"))
    expect(lesson.outputs("l01-widget")).to_contain_text("Controls: bits, symmetry, clip, granularity")
    expect(lesson.page.get_by_text("Error displaying widget")).to_have_count(0)


def test_a_reloaded_lesson_shows_its_pictures_with_and_without_a_kernel(open_lesson: OpenLesson) -> None:
    lesson = open_lesson("01")
    lesson.menu("Run", "Run All Cells")
    slider = lesson.cell("l01-widget").get_by_role("slider").first
    expect(slider).to_be_visible(timeout=MILLISECONDS)
    expect(lesson.cell("l01-clip-table").locator(PROMPT)).to_have_text(re.compile(r"\d"), timeout=MILLISECONDS)
    lesson.save()

    lesson.open()
    expect(slider).to_be_visible(timeout=MILLISECONDS)
    is_a_picture(lesson.outputs("l01-widget-twin").locator("img"))

    lesson.server.end_kernels()
    lesson.open()
    is_a_picture(lesson.outputs("l01-widget-twin").locator("img"))


def test_a_check_says_not_yet_and_then_right(open_lesson: OpenLesson) -> None:
    lesson = open_lesson("01")
    lesson.menu("Edit", "Clear Outputs of All Cells")
    verdict = lesson.outputs("l01-check-quantize")
    expect(verdict).to_have_count(0)
    for cell in ("l01-start", "l01-stub-quantize", "l01-check-quantize"):
        lesson.run(cell)
    expect(verdict).to_contain_text("Not yet", timeout=MILLISECONDS)

    lesson.write(
        "l01-stub-quantize",
        "def quantize_dequantize(x, scale, zero_point, quant_min, quant_max):\n"
        "return (((x / scale).round() + zero_point).clamp(quant_min, quant_max) - zero_point) * scale",
    )
    lesson.run("l01-stub-quantize")
    lesson.run("l01-check-quantize")
    expect(verdict).to_contain_text("✓ Right", timeout=MILLISECONDS)
    expect(verdict).not_to_contain_text("Not yet")


def test_an_inversion_comes_to_life_and_keeps_its_images_when_it_is_cancelled(open_lesson: OpenLesson) -> None:
    lesson = open_lesson("03")
    for cell in ("l03-start", "l03-noise"):
        lesson.run(cell)
    lesson.write("l03-widget", "experiment = lab.widgets.live_inversion(teacher, other, steps=600)\nexperiment")
    lesson.run("l03-widget")
    cell = lesson.cell("l03-widget")
    run, cancel = (cell.get_by_role("button", name=name) for name in ("Run", "Cancel"))
    status, readout = cell.get_by_role("status").first, cell.get_by_role("status").last
    expect(run).to_be_visible(timeout=MILLISECONDS)
    says(readout, "^Nothing inverted yet")

    variation = cell.locator(".widget-slider", has_text="variation")
    expect(variation.locator(".widget-readout")).to_have_text("0")
    press(variation.get_by_role("slider"), "ArrowRight")
    expect(variation.locator(".widget-readout")).to_have_text("0.001")
    tab_to(run, at_most=12)
    lesson.page.keyboard.press("Enter")
    says(status, r"^running, at step \d+ of 600: loss [\d.]+, \d+ s left$")
    first = says(readout, r"^Step \d+ of 600: of 32 images .* \+ variation")
    expect(readout).not_to_have_text(first, timeout=MILLISECONDS)

    press(cancel, "Enter")
    step = says(status, r"^cancelled at step [1-9]\d* of 600$").split()[3]
    says(readout, rf"^Step {step} of 600: of 32 images")
    is_a_picture(cell.get_by_role("img"))
