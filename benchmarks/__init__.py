"""Measures the project beside what people would use instead: `python -m benchmarks`, or `make bench`."""
