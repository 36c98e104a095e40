"""Distillation: randomness, one iteration, its health, exact state, and the loop. Needs torch, diffusers and safetensors only."""
