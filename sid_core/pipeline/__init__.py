"""Tell the Snakefile about the pipeline: digests, plan, status."""
