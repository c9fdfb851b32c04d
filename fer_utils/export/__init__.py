"""A trained model for use elsewhere: TFLite, ONNX and a model card."""
