"""latentdiff: training and evaluation of latent diffusion models."""

__version__ = "0.1.0"
