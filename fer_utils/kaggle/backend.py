"""Chooses what Keras computes with in an exported notebook, before Keras is imported."""

import importlib.util
import os

from fer_utils import places

_CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # with which JAX computes on GPUs; Kaggle's image has the first


def choose() -> str:
    """Set KERAS_BACKEND to `jax` where JAX can use several GPUs, else to `tensorflow`; return a sentence that says why.

    A value that is set stays. GPUs are counted by NVIDIA's files in `/dev`, the folder beside Kaggle's root.
    """
    if given := os.environ.get("KERAS_BACKEND"):
        return f"Keras computes with {given}, as KERAS_BACKEND says"
    n_gpus = len(list((places.kaggle_root().parent / "dev").glob("nvidia[0-9]*")))
    has_cuda = any(importlib.util.find_spec(name) for name in _CUDA)
    os.environ["KERAS_BACKEND"] = backend = "jax" if n_gpus > 1 and has_cuda else "tensorflow"
    if n_gpus <= 1:
        return f"Keras computes with {backend}: this machine has {n_gpus or 'no'} GPU"
    if not has_cuda:
        return f"Keras computes with {backend} on one of {n_gpus} GPUs: JAX for CUDA is not installed"
    return f"Keras computes with {backend}: with it {n_gpus} GPUs share each batch"
