"""Stage 10: the exported student where developers work. Imports neither torch nor any training module."""
