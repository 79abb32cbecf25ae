"""ONNX models for ONNX Runtime: graphs, quantized weights and decoders."""
