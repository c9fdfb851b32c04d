"""Helpers of the facial-expression-recognition notebooks, one concern a module."""

import os

# Read when TensorFlow is imported. On CPUs without AVX-512, TensorFlow leaves oneDNN off by default, and training
# convolutions then take several times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3"
)  # no notes about CPU features or a GPU that is not there; failures still raise
os.environ.setdefault("TQDM_MININTERVAL", "2")  # seconds; a progress bar in a notebook's output stays short
