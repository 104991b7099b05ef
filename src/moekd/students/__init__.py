"""Stage 5: the students' shapes, what they cost, how they are searched, and how they are built."""

from moekd.students.shapes import SHAPES, Shape
from moekd.students.tokenize import tokenize

__all__ = ["SHAPES", "Shape", "tokenize"]
