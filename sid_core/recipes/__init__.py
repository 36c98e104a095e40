"""The recipes: how the shipped networks were made, one module a part; build.py runs them all."""
