"""A run as one self-contained HTML page, and the same numbers as JSON."""

from dfqlab.report.content import (
    CertificateSummary,
    Diversity,
    ImagesMade,
    Pictures,
    RunReport,
    SecondRuntime,
    Sizes,
    SourceRow,
)
from dfqlab.report.page import write_report

__all__ = [
    "CertificateSummary",
    "Diversity",
    "ImagesMade",
    "Pictures",
    "RunReport",
    "SecondRuntime",
    "Sizes",
    "SourceRow",
    "write_report",
]
