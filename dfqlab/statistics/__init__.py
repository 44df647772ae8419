"""What BatchNorm layers remember, and what a batch does to them."""

from dfqlab.statistics.observed import ObservedTeacher
from dfqlab.statistics.packed import Layout, Statistics, TeacherOutputs, layout_of, remembered
from dfqlab_kernels.statistics import Per

__all__ = ["Layout", "ObservedTeacher", "Per", "Statistics", "TeacherOutputs", "layout_of", "remembered"]
