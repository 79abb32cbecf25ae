"""Files that are not models of one family: safetensors and GGUF containers, JSON, shards, digests, output files."""
