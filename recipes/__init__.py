"""Train the shipped networks: one module a recipe step, all run by build.py."""
