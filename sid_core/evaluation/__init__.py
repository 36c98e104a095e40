"""Turn a generator into a score: seeded samples, features, metrics and the protocol that scores share."""
