"""Model folders: their configuration, their tensors under canonical names, their tokenizer; reading and writing.

In memory every model has the names of the stock transformers classes; `layout` alone knows another spelling.
"""
