"""Memory of GPUs between processes: the CUDA driver through ctypes, and the division of the memory that is exported.

Nothing here is imported before a tensor on a GPU appears.
"""
