"""Turn a generator or a teacher into images."""
