"""Session files: what happened to every request, on disk, without its text unless that was asked for.

``schema`` says what a line holds, ``recorder`` writes from an event loop, ``reader`` reads whatever is left of a file.
"""
