"""What may be done to engines: restart, sleep, wake, reset, tell. One small file each, behind one protocol."""
