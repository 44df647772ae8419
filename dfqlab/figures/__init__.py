"""Every plot, for report, lessons and README, under one style sheet. Each function returns a figure; none shows it."""

from dfqlab.figures.bits import accuracy_by_bits
from dfqlab.figures.budget import bit_frontier, bits_by_layer
from dfqlab.figures.deployed import DeployedRow, deployed_table
from dfqlab.figures.diversity import activation_densities, projection_panels, sample_statistics_scatter
from dfqlab.figures.dots import accuracy_by_source
from dfqlab.figures.equalization import meeting_reaches
from dfqlab.figures.frontier import bits_along_frontier, loss_frontier
from dfqlab.figures.grids import matrix_view, number_line
from dfqlab.figures.inversion import image_rows, inversion_progress
from dfqlab.figures.lines import batch_norm_view, layer_errors, loss_curve
from dfqlab.figures.memory import layer_statistics, running_statistic, value_ranges
from dfqlab.figures.mixing import mixing_rows
from dfqlab.figures.operations import Station, operation_paths
from dfqlab.figures.opinions import mixed_opinions
from dfqlab.figures.pictures import coming_to_life, image_grid
from dfqlab.figures.ranges import clipped_values, ranges_by_rule
from dfqlab.figures.roofline import RooflinePoint, roofline
from dfqlab.figures.roundings import random_roundings
from dfqlab.figures.stairs import channel_ranges, staircase
from dfqlab.figures.style import color_of, to_png
from dfqlab.figures.tiles import tile_step
from dfqlab.figures.traffic import traffic_bars
from dfqlab.figures.transfer import transfer_matrix

__all__ = [
    "DeployedRow",
    "RooflinePoint",
    "Station",
    "accuracy_by_bits",
    "accuracy_by_source",
    "activation_densities",
    "batch_norm_view",
    "bit_frontier",
    "bits_along_frontier",
    "bits_by_layer",
    "channel_ranges",
    "clipped_values",
    "color_of",
    "coming_to_life",
    "deployed_table",
    "image_grid",
    "image_rows",
    "inversion_progress",
    "layer_errors",
    "layer_statistics",
    "loss_curve",
    "loss_frontier",
    "matrix_view",
    "meeting_reaches",
    "mixed_opinions",
    "mixing_rows",
    "number_line",
    "operation_paths",
    "projection_panels",
    "random_roundings",
    "ranges_by_rule",
    "roofline",
    "running_statistic",
    "sample_statistics_scatter",
    "staircase",
    "tile_step",
    "to_png",
    "traffic_bars",
    "transfer_matrix",
    "value_ranges",
]
