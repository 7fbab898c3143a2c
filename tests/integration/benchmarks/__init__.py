"""Tests of the benchmarks' own tools that need a Redis."""
