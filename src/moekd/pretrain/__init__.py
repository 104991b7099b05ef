"""Pre-training of a small code encoder on C and C++ sources: corpus, packed rows, objectives, held-out measures."""
