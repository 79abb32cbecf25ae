"""What ONNX Runtime can say: graphs, products of quantized weights, decoders."""
