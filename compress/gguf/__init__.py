"""A model folder as one GGUF file, for llama.cpp: on processors, on phones, wherever no GPU is.

The codes and scales of a 4-bit model go over bit for bit; nothing is quantized again. `write.export` reads a folder
of any layout and writes the file, `read.read_weights` is its inverse.
"""
