"""One file per algorithm; the file's name is the algorithm's name."""
