"""Proof routes of a vLLM server: rounds on the model that it serves."""
