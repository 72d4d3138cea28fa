"""The frozen network that the branches read their features from, its weights, and the resize in front of it."""
