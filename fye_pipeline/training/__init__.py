"""Training of every part of the portrait model, on the rendered world or on prepared videos."""
