"""Export of a trained model: TFLite, ONNX and a model card."""
