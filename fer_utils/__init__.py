"""Helper package of the facial-expression-recognition notebooks."""

import atexit
import gc
import os
import warnings

# Read when TensorFlow is imported. On CPUs without AVX-512, TensorFlow leaves oneDNN off by default, and training
# convolutions then take several times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# No log messages about CPU features or a missing GPU; errors are still raised.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_MININTERVAL", "2")  # seconds between updates, to keep notebook output short
# albumentations and cleanlab import tqdm.auto, which warns in a notebook without ipywidgets. Their bars are not shown here.
warnings.filterwarnings("ignore", message="IProgress not found")
# Otherwise Python searches all of TensorFlow's objects for garbage when it exits: two seconds after a training.
atexit.register(gc.freeze)
