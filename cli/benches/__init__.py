"""Benchmarks: each file measures, `report` says what a figure is held against."""
