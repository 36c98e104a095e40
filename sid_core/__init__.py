"""SiD-LSG: one-step generators distilled from text-to-image diffusion teachers (arXiv 2406.01561)."""

__version__ = "0.1.0"
