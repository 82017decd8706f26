"""Training: splits, the loop, and models on disk."""
