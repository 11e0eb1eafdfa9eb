"""Denoising clips and long videos: free functions over a pipeline's parts."""
