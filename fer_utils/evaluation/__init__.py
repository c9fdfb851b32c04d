"""Evaluation of a trained model: scores, test-time augmentation, Grad-CAM, the report."""
