"""Several people in one picture, each moved by a driver of their own."""
