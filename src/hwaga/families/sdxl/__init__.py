"""Stable Diffusion XL: two CLIP text encoders, U-Net, KL autoencoder, noise prediction with classifier-free guidance."""
