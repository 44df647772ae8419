"""Panels without a browser: what their callbacks do to what is shown, and to one another."""

import builtins
import html
import itertools
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure

from dfqlab.errors import ConfigurationError
from dfqlab.lab import panels
from dfqlab.lab.controls import Choice, Slider
from dfqlab.lab.display import Drawing
from dfqlab.lab.panels import Experiment, ExperimentView, Explorer, ExplorerView
from dfqlab.progress import OnStep, Step

SOON = 20.0
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def shell() -> InteractiveShell:
    return InteractiveShell.instance()


def square() -> Figure:
    return Figure(figsize=(0.2, 0.2))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def sentence_of(page: str) -> str:
    """The words under a picture, which its alternative text repeats."""
    alt = re.search(r'alt="([^"]*)"', page)
    words = re.search(r'<p role="status" aria-live="polite"[^>]*>(.*?)</p>', page)
    assert alt is not None, page
    assert words is not None, page
    assert alt[1] == words[1] != ""
    return html.unescape(words[1])


def status_of(view: ExperimentView) -> str:
    found = re.fullmatch(r'<span role="status" aria-live="polite">(.*)</span>', view.status.value)
    assert found is not None
    return html.unescape(found[1])


def explorer(draw: Callable[..., Drawing] | None = None) -> Explorer:
    def told(bits: int, grid: str) -> Drawing:
        return Drawing(square(), f"{bits} bits, {grid}")

    return Explorer(draw or told, bits=Slider(4, 2, 8), grid=Choice("affine", ("symmetric", "affine")))


# Explorer


def test_every_value_of_every_control_is_drawn() -> None:
    view = explorer().view()
    assert sentence_of(view.page.value) == "4 bits, affine"
    for bits, grid in itertools.product(range(2, 9), ("symmetric", "affine")):
        view.controls["bits"].value, view.controls["grid"].value = bits, grid
        assert view.error is None
        assert sentence_of(view.page.value) == f"{bits} bits, {grid}"


def test_a_drawing_that_fails_is_shown_and_recorded_and_the_next_one_recovers() -> None:
    def fails_at_3(bits: int, grid: str) -> Drawing:
        if bits == 3:
            raise ValueError("no <3> here")
        return Drawing(square(), f"{bits} bits")

    view = explorer(fails_at_3).view()
    view.controls["bits"].value = 3
    assert isinstance(view.error, ValueError)
    assert view.page.value == '<p role="alert"><b>This failed.</b> ValueError: no &lt;3&gt; here</p>'
    view.controls["bits"].value = 5
    assert view.error is None
    assert sentence_of(view.page.value) == "5 bits"


def test_a_first_drawing_that_fails_is_shown_and_recorded() -> None:
    def fails(bits: int, grid: str) -> Drawing:
        raise ZeroDivisionError("none")

    view = explorer(fails).view()
    assert isinstance(view.error, ZeroDivisionError)
    assert 'role="alert"' in view.page.value


def test_a_number_typed_between_two_positions_is_drawn_at_the_nearer_one() -> None:
    view = Explorer(lambda clip: Drawing(square(), f"{clip} %"), clip=Slider(100, 20, 100, step=5)).view()
    view.controls["clip"].value = 33
    assert (view.error, sentence_of(view.page.value)) == (None, "35 %")


def test_two_threads_that_turn_controls_leave_picture_and_readout_as_the_controls_stand() -> None:
    drawing = threading.Lock()
    overlapped: list[bool] = []

    def slow(bits: int, grid: str) -> Drawing:
        overlapped.append(not drawing.acquire(blocking=False))
        time.sleep(0.002)
        if not overlapped[-1]:
            drawing.release()
        return Drawing(square(), f"{bits} bits, {grid}")

    view = explorer(slow).view()

    def turn(name: str, values: Sequence[Any]) -> None:
        for value in itertools.islice(itertools.cycle(values), 40):
            view.controls[name].value = value

    threads = [
        threading.Thread(target=turn, args=("bits", (2, 3, 4, 5, 6, 7, 8))),
        threading.Thread(target=turn, args=("grid", ("symmetric", "affine"))),
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert view.error is None
    assert not any(overlapped)
    stand = f"{view.controls['bits'].value} bits, {view.controls['grid'].value}"
    assert sentence_of(view.page.value) == stand


def test_the_static_twin_draws_what_the_widget_draws() -> None:
    panel = explorer()
    view = panel.view()
    view.controls["bits"].value = 7
    assert panel.drawing(bits=7).html == view.page.value
    with capture_output() as shown:
        panel.picture(bits=7)
    assert [output.data["text/plain"] for output in shown.outputs] == ["7 bits, affine"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bit": 3}, "no control 'bit'; did you mean 'bits'?"),
        ({"bits": 9}, "bits=9 is none of its values: 2, 3, 4, 5, 6, 7, 8"),
        ({"grid": "afine"}, "grid='afine' is none of its values: symmetric, affine"),
    ],
)
def test_a_value_that_no_control_takes_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        explorer().drawing(**values)
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        Experiment(
            lambda **values: None,
            lambda steps: Drawing(square(), "x"),
            bits=Slider(4, 2, 8),
            grid=Choice("affine", ("symmetric", "affine")),
        ).steps(**values)


# Experiment


class Counter:
    """An experiment that goes one step further each time it is let on."""

    def __init__(self, total: int = 3) -> None:
        self.total = total
        self.go = threading.Semaphore(0)
        self.at = 0
        self.begun = 0
        self.drawn: list[int] = []
        self.draws = True
        self.experiment = Experiment(self.run, self.draw, size=Slider(2, 1, 3), kind=Choice("a", ("a", "<b>")))

    def run(self, size: int, kind: str, on_step: OnStep) -> None:
        self.begun += 1
        for index in range(1, self.total + 1):
            self.at = index
            assert self.go.acquire(timeout=SOON)
            on_step(Step("count", index, self.total, {"size": size}, note=f"{kind} {index}"))

    def draw(self, steps: Sequence[Step]) -> Drawing:
        if not self.draws:
            raise RuntimeError("cannot <draw>")
        self.drawn.append(len(steps))
        size = f" of size {steps[-1].values['size']}" if steps else ""
        return Drawing(square(), f"{len(steps)} steps{size}")

    def started(self) -> ExperimentView:
        view = self.experiment.view()
        view.run.click()
        wait_for(lambda: self.at == 1)
        return view


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    monkeypatch.setattr(panels, "_REDRAW_SECONDS", 0.0)
    return Counter()


def ended(view: ExperimentView) -> ExperimentView:
    assert view.job is not None
    assert view.job.join(SOON)
    return view


def test_before_run_nothing_has_happened(counter: Counter) -> None:
    view = counter.experiment.view()
    assert (status_of(view), sentence_of(view.page.value)) == ("not started", "0 steps")
    assert (view.run.disabled, view.cancel.disabled, view.job) == (False, True, None)
    view.cancel.click()
    assert (status_of(view), counter.begun) == ("not started", 0)


def test_run_shows_steps_as_they_are_done(counter: Counter) -> None:
    view = counter.experiment.view()
    view.controls["size"].value = 3
    view.run.click()
    wait_for(lambda: counter.at == 1)
    assert (view.run.disabled, view.cancel.disabled) == (True, False)
    assert status_of(view) == "running, before its first step"
    for step in (1, 2):
        time.sleep(0.11)  # a job tells ten steps a second
        counter.go.release()
        wait_for(lambda step=step: counter.at == step + 1)  # type: ignore[misc]
        assert (view.progress.value, view.progress.max) == (step, 3)
        assert sentence_of(view.page.value) == f"{step} steps of size 3"
        assert status_of(view) == f"running, at step {step} of 3: a {step}"
    counter.go.release()
    ended(view)
    assert (status_of(view), view.progress.value) == ("done: 3 of 3 steps", 3)
    assert sentence_of(view.page.value) == "3 steps of size 3"
    assert (view.run.disabled, view.cancel.disabled, view.error) == (False, True, None)


@pytest.mark.parametrize(("name", "position"), [*(("size", n) for n in (1, 2, 3)), ("kind", "a"), ("kind", "<b>")])
def test_every_value_of_every_control_runs(counter: Counter, name: str, position: Any) -> None:
    view = counter.experiment.view()
    view.controls[name].value = position
    counter.go.release(3)
    view.run.click()
    ended(view)
    assert view.error is None
    assert sentence_of(view.page.value).startswith("3 steps")


def test_run_twice_in_a_row_starts_one_job(counter: Counter) -> None:
    view = counter.started()
    job = view.job
    view.run.click()
    view.run.click()
    assert view.job is job
    counter.go.release(3)
    ended(view)
    assert counter.begun == 1


def test_many_clicks_at_once_start_one_job(counter: Counter) -> None:
    for _ in range(10):
        begun = counter.begun
        views = [counter.experiment.view() for _ in range(4)]
        together = threading.Barrier(4)

        def click(view: ExperimentView, together: threading.Barrier = together) -> None:
            together.wait()
            view.run.click()

        threads = [threading.Thread(target=click, args=(view,)) for view in views]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len({id(view.job) for view in views}) == 1
        counter.go.release(3)
        ended(views[0])
        assert counter.begun == begun + 1


def test_a_second_experiment_is_refused_while_one_runs_and_its_cancel_stops_that(counter: Counter) -> None:
    first, other = counter.started(), Counter()
    second = other.experiment.view()
    second.run.click()
    assert status_of(second) == "an experiment runs already (running, before its first step); Cancel stops it"
    assert (second.cancel.disabled, other.begun) == (False, 0)
    second.cancel.click()
    assert status_of(second) == "asked the other experiment to stop; once it has, Run starts this one"
    counter.go.release()
    ended(first)
    assert status_of(first) == "cancelled at step 1 of 3"
    other.go.release(3)
    second.run.click()
    ended(second)
    assert (status_of(second), other.begun) == ("done: 3 of 3 steps", 1)


def test_a_refused_view_says_when_the_other_experiment_has_ended(counter: Counter) -> None:
    first, other = counter.started(), Counter()
    second = other.experiment.view()
    second.run.click()
    assert "runs already" in status_of(second)
    counter.go.release(3)
    ended(first)
    wait_for(lambda: status_of(second) == "not started")
    assert second.cancel.disabled


def test_pressing_run_twice_leaves_the_job_the_views_own(counter: Counter) -> None:
    view = counter.started()
    view.run.click()
    view.cancel.click()
    assert "other experiment" not in status_of(view)
    counter.go.release()
    ended(view)
    assert status_of(view) == "cancelled at step 1 of 3"


def test_a_second_view_of_the_same_experiment_is_another_one(counter: Counter) -> None:
    first = counter.started()
    second = counter.experiment.view()
    second.run.click()
    assert "runs already" in status_of(second)
    assert sentence_of(second.page.value) == "0 steps"
    counter.go.release(3)
    ended(first)
    assert sentence_of(first.page.value).startswith("3 steps")
    assert sentence_of(second.page.value) == "0 steps"


def test_cancel_stops_at_the_next_step_and_keeps_what_was_done(counter: Counter) -> None:
    view = counter.started()
    counter.go.release()
    wait_for(lambda: counter.at == 2)
    view.cancel.click()
    assert status_of(view) == "stopping at step 1 of 3"
    counter.go.release()
    ended(view)
    assert status_of(view) == "cancelled at step 2 of 3"
    assert sentence_of(view.page.value) == "2 steps of size 2"
    assert (view.run.disabled, view.cancel.disabled, view.error) == (False, True, None)


def test_run_after_cancel_starts_again_from_an_empty_picture(counter: Counter) -> None:
    view = counter.started()
    counter.go.release()
    wait_for(lambda: counter.at == 2)
    view.cancel.click()
    counter.go.release()
    ended(view)
    assert sentence_of(view.page.value) == "2 steps of size 2"
    counter.at = 0
    view.run.click()
    wait_for(lambda: counter.at == 1)
    assert (sentence_of(view.page.value), view.progress.value) == ("0 steps", 0)
    counter.go.release(3)
    ended(view)
    assert (status_of(view), sentence_of(view.page.value)) == ("done: 3 of 3 steps", "3 steps of size 2")


def test_cancel_after_the_end_changes_nothing(counter: Counter) -> None:
    counter.go.release(3)
    view = counter.experiment.view()
    view.run.click()
    ended(view)
    view.cancel.click()
    assert status_of(view) == "done: 3 of 3 steps"


def test_a_run_that_fails_is_shown_and_recorded_and_can_be_run_again() -> None:
    broken = [True]

    def run(on_step: OnStep) -> None:
        if broken[0]:
            raise ValueError("too <few> images")

    view = Experiment(run, lambda steps: Drawing(square(), "a picture")).view()
    view.run.click()
    ended(view)
    assert isinstance(view.error, ValueError)
    assert view.page.value == '<p role="alert"><b>This failed.</b> ValueError: too &lt;few&gt; images</p>'
    assert status_of(view) == "failed: ValueError: too <few> images"
    assert (view.run.disabled, view.cancel.disabled) == (False, True)
    broken[0] = False
    view.run.click()
    ended(view)
    assert (view.error, sentence_of(view.page.value), status_of(view)) == (None, "a picture", "done")


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_picture_that_fails_is_shown_and_recorded(counter: Counter, after: int) -> None:
    view = counter.experiment.view()
    if after == 0:
        counter.draws = False
    view.run.click()
    if after:
        wait_for(lambda: counter.at == 1)
        for step in range(1, after):
            counter.go.release()
            wait_for(lambda step=step: counter.at == step + 1)  # type: ignore[misc]
        counter.draws = False
        counter.go.release()
    ended(view)
    assert isinstance(view.error, RuntimeError)
    assert view.page.value == '<p role="alert"><b>This failed.</b> RuntimeError: cannot &lt;draw&gt;</p>'
    assert view.run.disabled is False


def test_a_last_picture_that_fails_is_shown_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "_REDRAW_SECONDS", 60.0)  # only first, and last
    counter = Counter()
    view = counter.started()
    counter.draws = False
    counter.go.release(3)
    ended(view)
    assert isinstance(view.error, RuntimeError)
    assert 'role="alert"' in view.page.value
    assert status_of(view).startswith("failed: RuntimeError")


def test_a_first_picture_that_fails_is_shown_and_recorded(counter: Counter) -> None:
    counter.draws = False
    view = counter.experiment.view()
    assert isinstance(view.error, RuntimeError)
    assert 'role="alert"' in view.page.value


def test_pictures_are_drawn_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "_REDRAW_SECONDS", 60.0)
    counter = Counter(total=200)
    counter.go.release(200)
    view = counter.experiment.view()
    view.run.click()
    ended(view)
    assert counter.drawn == [0, 0, 200]


def test_the_progress_of_an_earlier_longer_run_is_forgotten(counter: Counter) -> None:
    counter.total = 50
    counter.go.release(50)
    view = counter.experiment.view()
    view.run.click()
    ended(view)
    counter.total = 2
    counter.go.release(2)
    view.run.click()
    ended(view)
    assert (view.progress.value, view.progress.max) == (2, 2)


def test_a_picture_of_a_run_that_is_over_does_not_cover_the_next_one(counter: Counter) -> None:
    let_go, drawing = threading.Event(), threading.Event()
    draw, pictures = counter.experiment.draw, itertools.count(1)

    def draws_the_end_slowly(steps: Sequence[Step]) -> Drawing:
        if len(steps) == 3 and next(pictures) == 2:  # the first is that of the last step
            drawing.set()
            assert let_go.wait(SOON)
        return draw(steps)

    counter.experiment.draw = draws_the_end_slowly  # type: ignore[method-assign]
    view = counter.started()
    first = view.job
    assert first is not None
    counter.go.release(3)
    assert drawing.wait(SOON)
    counter.at = 0
    view.run.click()
    assert view.job is not first
    wait_for(lambda: counter.at == 1)
    view._follow(first, ())  # it may also come late with its state
    let_go.set()
    assert first.join(SOON)
    assert (sentence_of(view.page.value), view.progress.value) == ("0 steps", 0)
    assert (view.run.disabled, view.cancel.disabled) == (True, False)
    counter.go.release(3)
    ended(view)
    assert sentence_of(view.page.value) == "3 steps of size 2"


def test_the_static_twin_of_an_experiment_runs_it(counter: Counter) -> None:
    counter.go.release(6)
    assert [step.index for step in counter.experiment.steps(size=1)] == [1, 2, 3]
    with capture_output() as shown:
        counter.experiment.picture(size=1)
    assert [output.data["text/plain"] for output in shown.outputs] == ["3 steps of size 1"]


def test_callbacks_are_right_while_the_main_thread_is_busy(counter: Counter) -> None:
    """As in JupyterLab 4.4 and later, where a widget's messages have a thread of their own."""
    view = counter.experiment.view()
    counter.total = 10**6
    counter.go.release(10**6)
    clicks = [threading.Timer(0.02, view.run.click), threading.Timer(0.2, view.cancel.click)]
    [timer.start() for timer in clicks]
    until = time.monotonic() + SOON
    while (view.job is None or view.job.state == "running") and time.monotonic() < until:
        sum(range(1000))
    ended(view)
    assert re.fullmatch(r"cancelled at step \d+ of 1000000", status_of(view))
    assert view.progress.value == view.job.step.index  # type: ignore[union-attr]


# On the screen


def displayed(panel: Explorer | Experiment) -> dict[str, Any]:
    with capture_output() as shown:
        panel._ipython_display_()
    assert (shown.stdout, shown.stderr) == ("", "")
    (output,) = shown.outputs
    return dict(output.data)


def test_a_displayed_panel_is_a_widget_with_words_for_those_without(counter: Counter) -> None:
    data = displayed(explorer())
    assert set(data) == {VIEW, "text/plain"}
    assert data["text/plain"] == ("Controls: bits, grid. Run the cell to turn them; their first picture follows.")
    data = displayed(counter.experiment)
    assert set(data) == {VIEW, "text/plain"}
    assert data["text/plain"].startswith("Controls: Run, Cancel, size, kind. Run the cell")


@pytest.mark.parametrize("made", ["explorer", "experiment"])
def test_everything_that_can_be_turned_is_seen_and_reached(made: str, counter: Counter) -> None:
    view: ExplorerView | ExperimentView = explorer().view() if made == "explorer" else counter.experiment.view()
    operated = [*view.controls.values()]
    if isinstance(view, ExperimentView):
        operated += [view.run, view.cancel]
    on_page = list(walk(view.box))
    for widget in [*operated, view.page]:
        assert widget in on_page
        assert widget.layout.visibility != "hidden"
        assert widget.layout.display != "none"
    for widget in operated:
        assert widget.description
        assert widget.tabbable is not False
    assert list(view.controls) == [widget.description for widget in view.controls.values()]


def walk(widget: Any) -> Any:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


@pytest.mark.parametrize("hidden", ["not installed", "blocked"])
@pytest.mark.parametrize("made", ["explorer", "experiment"])
def test_without_ipywidgets_one_sentence_and_the_static_twin(
    made: str, hidden: str, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hidden == "blocked":
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    else:
        real = builtins.__import__

        def without(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.partition(".")[0] == "ipywidgets":
                raise ModuleNotFoundError("No module named 'ipywidgets'", name="ipywidgets")
            return real(name, *args, **kwargs)

        for name in [name for name in sys.modules if name.partition(".")[0] == "ipywidgets"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", without)
    counter.go.release(3)
    panel = explorer() if made == "explorer" else counter.experiment
    with capture_output() as shown:
        panel._ipython_display_()
    assert shown.stdout.count("\n") == 2  # why there are no controls, and what the picture says
    assert shown.stdout.startswith("ipywidgets is not installed")
    assert 'pip install "dfqlab[lab]"' in shown.stdout
    (output,) = shown.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.data["text/plain"] == ("4 bits, affine" if made == "explorer" else "3 steps of size 2")
