"""What BatchNorm layers remember, and what a batch does to them."""

from dfqlab.statistics.observed import ObservedTeacher
from dfqlab.statistics.packed import Layout, Per, Statistics, TeacherOutputs, layout_of, remembered

__all__ = ["Layout", "ObservedTeacher", "Per", "Statistics", "TeacherOutputs", "layout_of", "remembered"]
