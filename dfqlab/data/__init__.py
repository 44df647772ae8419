"""Real data, to judge with. Nothing that synthesizes or compresses may import this."""

from dfqlab.data.images import LabelledImages
from dfqlab.data.loading import load_data

__all__ = ["LabelledImages", "load_data"]
