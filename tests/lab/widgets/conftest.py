"""Labelled images to judge the network of a widget's test with."""

import pytest
import torch

from dfqlab.data import LabelledImages
from dfqlab.teachers import Teacher


@pytest.fixture(scope="module")
def judge(teacher: Teacher) -> LabelledImages:
    """40 images; nine of ten have the class that the test's `teacher` gives them."""
    images = torch.rand(40, *teacher.input.size, generator=torch.Generator().manual_seed(3))
    labels = teacher(images).argmax(1)
    labels[::10] = (labels[::10] + 1) % 4
    return LabelledImages("judge", images, labels)
