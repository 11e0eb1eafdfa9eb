"""Face landmarks: detection, metric geometry, motion alignment, drawing and the sequence file.

Import from the modules: this package itself imports nothing, so that MediaPipe is loaded only where a face is sought.
"""
