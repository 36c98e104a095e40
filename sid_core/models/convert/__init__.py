"""Convert generators: import the official checkpoints, export diffusers pipelines with a model card."""
