"""The networks of the portrait model: each is a diffusers model that saves and loads by itself."""
