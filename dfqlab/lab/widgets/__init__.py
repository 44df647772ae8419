"""The widgets of the lessons, one file a subject. Each function returns an `Explorer` or an `Experiment`."""

from dfqlab.lab.widgets.budget import bit_budget
from dfqlab.lab.widgets.calibration import accuracy_by_width
from dfqlab.lab.widgets.deploy import honest_table
from dfqlab.lab.widgets.diversity import diverse_images
from dfqlab.lab.widgets.integer_grid import integer_grid
from dfqlab.lab.widgets.inversion import live_inversion
from dfqlab.lab.widgets.layers import layer_memory
from dfqlab.lab.widgets.mixing import mixing_box
from dfqlab.lab.widgets.ranges import range_rules
from dfqlab.lab.widgets.tiles import launched, tiles

__all__ = [
    "accuracy_by_width",
    "bit_budget",
    "diverse_images",
    "honest_table",
    "integer_grid",
    "launched",
    "layer_memory",
    "live_inversion",
    "mixing_box",
    "range_rules",
    "tiles",
]
