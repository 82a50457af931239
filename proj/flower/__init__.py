"""Flower, safe by default: `install` makes `celery -A proj flower` start ours."""

from proj.flower.start import install

__all__ = ["install"]
