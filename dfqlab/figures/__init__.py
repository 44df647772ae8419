"""Every plot, for report, lessons and README, under one style sheet. Each function returns a figure; none shows it."""

from dfqlab.figures.dots import accuracy_by_source
from dfqlab.figures.lines import batch_norm_view, loss_curve
from dfqlab.figures.pictures import coming_to_life, image_grid
from dfqlab.figures.style import color_of, to_png

__all__ = [
    "accuracy_by_source",
    "batch_norm_view",
    "color_of",
    "coming_to_life",
    "image_grid",
    "loss_curve",
    "to_png",
]
