"""The network and its two training phases."""
