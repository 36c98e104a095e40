"""Pretrained parts in the diffusers layout: the only importer of diffusers and transformers."""
