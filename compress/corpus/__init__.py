"""Text into token windows: the same documents, tokenizer and seed give the same windows, whose digest names them.

`read_documents` reads a recipe's sources, `make_windows` cuts them, `save_windows` and `load_windows` keep them.
"""

from compress.corpus.chat import ChatTemplate
from compress.corpus.cut import make_windows
from compress.corpus.documents import Document, read_documents
from compress.corpus.overlap import Overlap, overlap
from compress.corpus.recipe import FILES, CorpusRecipe, Part
from compress.corpus.windows import Windows, load_windows, save_windows

__all__ = [
    "FILES",
    "ChatTemplate",
    "CorpusRecipe",
    "Document",
    "Overlap",
    "Part",
    "Windows",
    "load_windows",
    "make_windows",
    "overlap",
    "read_documents",
    "save_windows",
]
