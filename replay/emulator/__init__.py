"""A vLLM that is not there: wire-exact, speculating, collapsing on any clock."""
