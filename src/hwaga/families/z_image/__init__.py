"""Z-Image and Z-Image Turbo: S3-DiT transformer, Qwen3 text encoder, Flux autoencoder, flow matching."""
