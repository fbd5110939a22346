"""The twelve exercises, a file each: what is taken out, how it is checked, and which mistakes are known."""

from exercises.course.exercise import Exercise, Mistake, close, load_course

__all__ = ["Exercise", "Mistake", "close", "load_course"]
