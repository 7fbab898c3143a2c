"""Engines vllm (a vLLM of the worker's own) and vllm-server (one that serves inference as well)."""
