"""HunyuanVideo-1.5 in numbers: variants, shapes, tokens, FLOP, bytes, tiles, kernels."""
