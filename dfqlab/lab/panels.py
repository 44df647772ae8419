"""Widgets: controls over a plain function, or over a job that runs, shows where it is, and can be cancelled.

Both are plain objects until a cell shows them. `picture()` is the static twin: the same function, without a widget.
"""

import html
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from dfqlab.errors import ConfigurationError, did_you_mean
from dfqlab.lab.controls import INDENT, Control
from dfqlab.lab.display import Drawing
from dfqlab.lab.job import Job
from dfqlab.progress import OnStep, Step, ignore

_REDRAW_SECONDS = 0.5
_UNDER_CONTROLS = {"margin": f"0 0 0 {INDENT}"}
_WITHOUT_WIDGETS = (
    "ipywidgets is not installed in this kernel, so there are no controls to turn, only the picture of how they stand "
    'first; pip install "dfqlab[lab]" brings them.'
)


class Explorer:
    """Controls over a plain function: turn one, and the picture and its sentence follow.

    Args:
        draw: takes a value for each control, by name, and returns a `Drawing`.
        controls: by the name that the learner reads and `draw` takes.
    """

    def __init__(self, draw: Callable[..., Drawing], **controls: Control) -> None:
        self._draw = draw
        self.controls = controls

    def drawing(self, **values: Any) -> Drawing:
        """What the widget shows with these values; the others stand as they stand first.

        Raises:
            ConfigurationError: a control that it does not have, or a value that the control cannot take.
        """
        return self._draw(**_chosen(self.controls, values))

    def picture(self, **values: Any) -> None:
        """The static twin: what the widget shows with these values."""
        self.drawing(**values).show()

    def view(self) -> "ExplorerView":
        """The widget, as it stands in a notebook."""
        return ExplorerView(self)

    def _ipython_display_(self) -> None:
        _display(self)


class ExplorerView:
    """An `Explorer` on the screen. `error` is what its last drawing failed with, if it did; it is shown as well."""

    def __init__(self, explorer: Explorer) -> None:
        import ipywidgets

        self._explorer = explorer
        self._lock = threading.Lock()  # callbacks may run beside each other
        self.error: BaseException | None = None
        self.controls = {name: control.widget(name) for name, control in explorer.controls.items()}
        self.page = ipywidgets.HTML()
        self.box = ipywidgets.VBox([*self.controls.values(), self.page])
        self._redraw()
        for control in self.controls.values():
            control.observe(self._redraw, names="value")

    @property
    def words(self) -> str:
        """What is written for people and tests."""
        return "Controls: " + ", ".join(self.controls) + ". Run the cell to turn them; their first picture follows."

    def _redraw(self, _change: Any = None) -> None:
        with self._lock:
            try:
                self.error = None
                self.page.value = self._explorer.drawing(**{n: c.value for n, c in self.controls.items()}).html
            except Exception as error:
                self.error = error
                self.page.value = _alert(error)


class Experiment:
    """A job with controls: Run starts it, its picture grows with its steps, Cancel stops it, and Run starts it again.

    One job runs at a time in a kernel: two would crawl.

    Args:
        run: takes a value for each control, by name, and `on_step`.
        draw: the picture of the steps that were done so far, of none at first.
        controls: by the name that the learner reads and `run` takes.
    """

    def __init__(self, run: Callable[..., Any], draw: Callable[[Sequence[Step]], Drawing], **controls: Control) -> None:
        self._run = run
        self.draw = draw
        self.controls = controls

    def steps(self, **values: Any) -> list[Step]:
        """Run it here and now, and return its steps.

        Raises:
            ConfigurationError: a control that it does not have, or a value that the control cannot take.
        """
        steps: list[Step] = []
        self.work(values, steps)(ignore)
        return steps

    def picture(self, **values: Any) -> None:
        """The static twin: run it here and now with these values, and show the last picture."""
        self.draw(self.steps(**values)).show()

    def work(self, values: dict[str, Any], steps: list[Step]) -> Callable[[OnStep], Any]:
        """The run as a job does it: every step is kept in `steps`, then told."""
        chosen = _chosen(self.controls, values)

        def work(on_step: OnStep) -> Any:
            def keep(step: Step) -> None:
                steps.append(step)
                on_step(step)

            return self._run(**chosen, on_step=keep)

        return work

    def view(self) -> "ExperimentView":
        """The widget, as it stands in a notebook."""
        return ExperimentView(self)

    def _ipython_display_(self) -> None:
        _display(self)


class ExperimentView:
    """An `Experiment` on the screen. `error` is what its last run or drawing failed with; it is shown as well."""

    def __init__(self, experiment: Experiment) -> None:
        import ipywidgets

        self._experiment = experiment
        self._lock = threading.Lock()  # a click, and the job's own thread
        self._drawn = -float("inf")
        self.job: Job[Any] | None = None
        self._own = True
        self.error: BaseException | None = None
        self.controls = {name: control.widget(name) for name, control in experiment.controls.items()}
        button, bar = {"width": "96px", "flex": "0 0 auto"}, {"width": "102px", "flex": "0 0 auto"}
        self.run = ipywidgets.Button(
            description="Run", tooltip="Start the experiment", button_style="primary", layout=button
        )
        self.cancel = ipywidgets.Button(
            description="Cancel", tooltip="Stop at the next step", disabled=True, layout=button
        )
        self.progress = ipywidgets.IntProgress(value=0, max=1, layout=bar)
        self.status = ipywidgets.HTML(_status("not started"), layout=_UNDER_CONTROLS)
        self.page = ipywidgets.HTML()
        # The status has a line of its own: beside the buttons it would wrap, and the picture would jump.
        row = ipywidgets.HBox([self.run, self.cancel, self.progress], layout=_UNDER_CONTROLS)
        self.box = ipywidgets.VBox([*self.controls.values(), row, self.status, self.page])
        self.run.on_click(self._start)
        self.cancel.on_click(self._cancel)
        try:
            self.page.value = experiment.draw(()).html
        except Exception as error:
            self._fail(error)

    @property
    def words(self) -> str:
        """What is written for people and tests."""
        names = ", ".join(["Run", "Cancel", *self.controls])
        return f"Controls: {names}. Run the cell to use them; a picture of the finished experiment follows."

    def _start(self, _button: Any = None) -> None:
        steps: list[Step] = []
        with self._lock:
            try:
                work = self._experiment.work({name: control.value for name, control in self.controls.items()}, steps)
                job = Job(work, on_change=lambda job: self._follow(job, steps))
                running = _start_unless_one_runs(job)
            except Exception as error:
                self._fail(error)
                return
            if running is self.job:  # pressed twice
                return
            self.job, self._own = running, running is job
            if self._own:
                self.error = None
            else:
                self.status.value = _status(f"an experiment runs already ({running.sentence}); Cancel stops it")
                self.cancel.disabled = False
                threading.Thread(target=self._wait_for, args=(running,), daemon=True).start()

    def _cancel(self, _button: Any = None) -> None:
        with self._lock:
            if self.job is not None and self.job.state == "running":
                self.job.cancel()
                waiting = "asked the other experiment to stop; once it has, Run starts this one"
                self.status.value = _status(self.job.sentence if self._own else waiting)

    def _wait_for(self, other: Job[Any]) -> None:
        """Say when another experiment's job has ended."""
        other.join()
        with self._lock:
            if self.job is other:
                self.status.value, self.cancel.disabled = _status("not started"), True

    def _follow(self, job: Job[Any], steps: Sequence[Step]) -> None:
        """Called in the worker thread: show where the job is, and now and then its picture.

        A job that ended may still be drawing when the next one starts; it draws no more then.
        """
        with self._lock:
            if job is not self.job:
                return
            running, step = job.state == "running", job.step
            self.run.disabled, self.cancel.disabled = running, not running
            self.progress.max, self.progress.value = (1, 0) if step is None else (step.total, step.index)
            note = f": {step.note}" if running and step and step.note else ""
            self.status.value = _status(job.sentence + note)
            if job.state == "failed" and job.error is not None:
                self._fail(job.error)
                return
        if running and step is not None and time.monotonic() - self._drawn < _REDRAW_SECONDS:
            return
        picture = self._experiment.draw(tuple(steps)).html
        with self._lock:
            if job is self.job:
                self.page.value, self._drawn = picture, time.monotonic()

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self.page.value = _alert(error)


_turn = threading.Lock()
_last_job: Job[Any] | None = None


def _start_unless_one_runs(job: Job[Any]) -> Job[Any]:
    """Start the job and return it; or return the one that runs."""
    global _last_job
    with _turn:
        if _last_job is None or _last_job.state != "running":
            _last_job = job.start()
        return _last_job


def _display(panel: Explorer | Experiment) -> None:
    from IPython.display import display

    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        print(_WITHOUT_WIDGETS)
        panel.picture()
        return
    view = panel.view()
    _answer_beside_cells(view.box)
    bundle = view.box._repr_mimebundle_() or {}
    display({**bundle, "text/plain": view.words}, raw=True)  # type: ignore[no-untyped-call]


def _answer_beside_cells(widget: Any) -> None:
    """Let a widget and its children answer while a cell runs, as JupyterLab asks for it.

    ipykernel 7.4 sends what is pressed to the thread that last wrote to the widget, which may be the cell's. It leaves
    that be where a comm has no route of its own.
    """
    if widget.comm is not None:
        widget.comm._reply_subshell_for = None
    for child in getattr(widget, "children", ()):
        _answer_beside_cells(child)


def _chosen(controls: dict[str, Control], values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if name not in controls:
            raise ConfigurationError(f"no control {name!r}; {did_you_mean(name, controls)}")
        if value not in controls[name].positions:
            known = ", ".join(map(str, controls[name].positions))
            raise ConfigurationError(f"{name}={value!r} is none of its values: {known}")
    return {name: control.value for name, control in controls.items()} | values


def _status(sentence: str) -> str:
    return f'<span role="status" aria-live="polite">{html.escape(sentence)}</span>'


def _alert(error: BaseException) -> str:
    return f'<p role="alert"><b>This failed.</b> {html.escape(type(error).__name__)}: {html.escape(str(error))}</p>'
