"""vLLM plug-in that moves acceptance and step time of a real engine along a schedule: docs/engine-faults.md.

It runs inside vLLM's processes: here nothing is imported but the standard library, msgspec (which vLLM needs itself)
and, in the hooks, vLLM and torch.
"""
