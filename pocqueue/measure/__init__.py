"""What measures: bench, compare, calibrate."""
