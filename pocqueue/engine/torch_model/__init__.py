"""Engine torch: a transformers model in this process, and the embedded model."""
