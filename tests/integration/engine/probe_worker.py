"""A worker extension that looks at the served KV cache around a pass."""

from __future__ import annotations

from pocqueue.engine.vllm_worker import PoCWorker


class ProbeWorker(PoCWorker):
    """`PoCWorker`, and a question."""

    def probe_served_cache(self, batch_size: int, seq_len: int) -> dict[str, bool]:
        """Fill the served caches with a pattern, run a pass, and say what became of them."""
        layers = self.vllm_config.compilation_config.static_forward_context
        caches = {name: layer.kv_cache for name, layer in layers.items()}
        for cache in caches.values():
            cache.fill_(1.5)
        self.poc_distances("block", "key", [0, 1], batch_size, seq_len)
        unchanged = all(bool((cache == 1.5).all()) for cache in caches.values())
        bound = all(layers[name].kv_cache is cache for name, cache in caches.items())
        forward = self._poc_forward
        assert forward is not None
        scratch_held = forward._shape is not None
        self.poc_release()
        released = forward._shape is None
        for cache in caches.values():
            cache.zero_()
        return {
            "unchanged": unchanged,
            "bound_again": bound,
            "scratch_held": scratch_held,
            "released": released,
        }
