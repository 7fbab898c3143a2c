"""Iterations of a task that all its miners do in step, certificates and beacons over them, draws."""
