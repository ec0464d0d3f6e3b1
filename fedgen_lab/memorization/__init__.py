"""Has a model learned, or copied? Distances, scores and tests of memorization. Lab 09."""
