"""Pure code: bytes and times go in, observations, verdicts and decisions come out."""
