"""Prepare the Snakefile: frozen settings, rules, digests, plan, status."""
