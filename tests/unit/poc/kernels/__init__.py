"""Tests of the kernels of the proof's maths."""
