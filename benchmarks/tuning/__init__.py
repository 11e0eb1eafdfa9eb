"""What tuning the full steps brings, and the presets that ship."""
