"""Reading one answer: HTTP chunks, SSE events, usage, engine dialects, and the meter that makes an Observation."""
