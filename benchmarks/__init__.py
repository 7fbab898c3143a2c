"""Benchmarks: each compares two things in one run and reports medians and a ratio."""
