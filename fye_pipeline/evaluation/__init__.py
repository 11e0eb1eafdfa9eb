"""Measuring what the model makes: picture metrics, landmarks, and reenactment on the rendered world."""
