"""Load pretrained networks in the layout of diffusers; no other package imports diffusers and transformers."""
