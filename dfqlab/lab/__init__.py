"""What the lessons use: the first cell, figures with words, the library's own code, checks, jobs and widgets.

from dfqlab import lab

lab.start("01")
"""

from dfqlab.lab import widgets
from dfqlab.lab.controls import Choice, Notches, Slider
from dfqlab.lab.deployed import deployed
from dfqlab.lab.display import Drawing, show, source
from dfqlab.lab.exercises import check
from dfqlab.lab.exported import executed_layer, layer_path
from dfqlab.lab.interpreter import can_launch, import_triton
from dfqlab.lab.job import Job
from dfqlab.lab.launching import launch
from dfqlab.lab.panels import Experiment, Explorer
from dfqlab.lab.probe import layer_output
from dfqlab.lab.session import start
from dfqlab.lab.traffic import backward_traffic, forward_traffic

__all__ = [
    "Choice",
    "Drawing",
    "Experiment",
    "Explorer",
    "Job",
    "Notches",
    "Slider",
    "backward_traffic",
    "can_launch",
    "check",
    "deployed",
    "executed_layer",
    "forward_traffic",
    "import_triton",
    "launch",
    "layer_output",
    "layer_path",
    "show",
    "source",
    "start",
    "widgets",
]
