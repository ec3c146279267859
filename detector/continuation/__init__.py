"""Continuing an answer that broke off on another engine: bytes in, bytes out; no I/O.

``ask`` has the first engine tell token ids; ``keeper`` reads its events on their way to the client and keeps what a
continuation needs; ``parameters`` says as a table which requests can be continued faithfully; ``handover`` decides from
both how an answer goes on and makes the request for the other engine; ``stitch`` makes that engine's events those of
one and the same answer, and ``seam`` finds stop strings across the cut.
"""
