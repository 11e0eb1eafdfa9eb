"""A landmark-masked Taylor-interpolated cache for diffusers UNets."""
