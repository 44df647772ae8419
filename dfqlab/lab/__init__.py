"""What the lessons use: the first cell, figures with words, the library's own code, checks, jobs and widgets.

from dfqlab import lab

lab.start("01")
"""

from dfqlab.lab import widgets
from dfqlab.lab.controls import Choice, Slider
from dfqlab.lab.display import Drawing, show, source
from dfqlab.lab.exercises import check
from dfqlab.lab.job import Job
from dfqlab.lab.panels import Experiment, Explorer
from dfqlab.lab.probe import layer_output
from dfqlab.lab.session import start

__all__ = [
    "Choice",
    "Drawing",
    "Experiment",
    "Explorer",
    "Job",
    "Slider",
    "check",
    "layer_output",
    "show",
    "source",
    "start",
    "widgets",
]
