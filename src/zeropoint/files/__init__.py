"""Reading and writing files: safetensors and GGUF containers, JSON, shards, digests, texts, result files, the cache."""
