"""Sessions: rounds that remote small nodes start, and read page by page."""
