"""Machines: what a GPU can do, how GPUs are joined, and how a model is laid out on them."""
