"""The reverse proxy: forwards, measures and switches."""
