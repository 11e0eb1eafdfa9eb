"""`ticache.tune` and what it is made of; it stands above `ticache.api`, whose caches it tries."""
