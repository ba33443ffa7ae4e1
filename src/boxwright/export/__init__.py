"""From a PyTorch module to an ONNX file that detects the same, and on to the engines."""
