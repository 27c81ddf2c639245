"""Files of rows scored part by part, on any number of processes, and resumable."""
