"""Train a generator: one iteration, the loop, checkpoints, ranks. Needs torch, diffusers and safetensors only."""
