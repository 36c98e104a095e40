"""Compute metrics from features, each with its uncertainty."""
