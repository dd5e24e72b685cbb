"""Benchmarks; `make bench` runs the short set."""
