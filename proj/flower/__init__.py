"""Flower with safe defaults: `install` makes `celery -A proj flower` use them."""

from proj.flower.start import install

__all__ = ["install"]
