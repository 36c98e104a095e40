"""From a generator to a score: samples by seed, features, metrics, and the protocol that says when two scores compare."""
