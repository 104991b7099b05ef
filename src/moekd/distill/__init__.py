"""Stage 6: how a student learns from teacher scores."""
