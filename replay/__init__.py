"""Recorded sessions and the engine that is not there: store, formats, emulator."""
