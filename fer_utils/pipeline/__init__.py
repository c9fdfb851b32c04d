"""Stages, their parameters, folders and records; runs from the command line. Imports no TensorFlow."""
