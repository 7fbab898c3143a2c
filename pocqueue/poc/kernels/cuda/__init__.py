"""The maths on a CUDA GPU, by Triton."""
