"""Numbers that judge: intervals, distances, and what images are: diverse or homogeneous, recognised or not."""

from dfqlab.measures.activations import channel_activations, sample_statistics
from dfqlab.measures.distances import batch_norm_distance, decibels, sqnr
from dfqlab.measures.diversity import (
    StatisticsVariance,
    gaussian_distance,
    similarity_index,
    similarity_sum,
    statistics_variance,
    wasserstein_to_gaussian,
)
from dfqlab.measures.intervals import Difference, Interval, paired_difference, wilson
from dfqlab.measures.projection import (
    Peak,
    PrincipalProjection,
    kernel_density,
    peak_density,
    principal_projection,
    shared_bandwidth,
)
from dfqlab.measures.recognition import (
    Recognition,
    alignment_matrix,
    alignment_of,
    inception_score,
    inception_score_of,
    recognition,
)

__all__ = [
    "Difference",
    "Interval",
    "Peak",
    "PrincipalProjection",
    "Recognition",
    "StatisticsVariance",
    "alignment_matrix",
    "alignment_of",
    "batch_norm_distance",
    "channel_activations",
    "decibels",
    "gaussian_distance",
    "inception_score",
    "inception_score_of",
    "kernel_density",
    "paired_difference",
    "peak_density",
    "principal_projection",
    "recognition",
    "sample_statistics",
    "shared_bandwidth",
    "similarity_index",
    "similarity_sum",
    "sqnr",
    "statistics_variance",
    "wasserstein_to_gaussian",
    "wilson",
]
