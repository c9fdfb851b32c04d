"""The network and its training in two phases."""
