"""Load the networks that turn images and captions into features."""
