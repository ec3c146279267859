"""Statistics of the detector: the healthy reference, and the evidence that answers and steps give against it."""
