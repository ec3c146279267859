"""The engine as a child process: started, watched, started anew at another level, ended with all it began."""
