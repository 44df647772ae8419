"""Losses on images. Each says what it sums and what it averages."""

from dfqlab.synthesis.terms.alignment import Alignment, SlackAlignment, one_layer_per_sample
from dfqlab.synthesis.terms.diversity import SampleCorrelation, sample_correlation
from dfqlab.synthesis.terms.labels import CrossEntropy
from dfqlab.synthesis.terms.priors import BlurPrior, L2Prior, LowPassPrior, TotalVariation

__all__ = [
    "Alignment",
    "BlurPrior",
    "CrossEntropy",
    "L2Prior",
    "LowPassPrior",
    "SampleCorrelation",
    "SlackAlignment",
    "TotalVariation",
    "one_layer_per_sample",
    "sample_correlation",
]
