"""Many animations: manifests, processes, ranks, Ray."""
