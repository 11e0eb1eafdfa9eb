"""Triton kernels of ticache (torch and triton only)."""
