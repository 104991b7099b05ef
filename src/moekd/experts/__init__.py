"""Stage 3: encoder, single teacher, experts, router, and the table of their scores."""
