"""Tensors on GPUs, at the stub's end. Imported when the first one appears, and not before."""
