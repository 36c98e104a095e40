"""Read and write captions, prompts, images and shards; draw the scenes of the embedded experiment."""
