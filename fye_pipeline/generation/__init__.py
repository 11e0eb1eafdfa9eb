"""Ways to make a video that is longer than one window of the denoising UNet."""
