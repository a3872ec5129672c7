"""Token windows to train on for `benchmarks/qad.py` and `prune_distill.py`: whole texts of several domains.

    python benchmarks/training_windows.py SMOLLM2 CORPORA training.safetensors

None of them is held out: the held-out windows are quality_windows.py's, of other documents in each domain, and of
another package for `code`. Of each text as many windows as it has, `NUM_WINDOWS` at the most.
"""

from quality_windows import Source, write

NUM_WINDOWS = 1500
SOURCES = [
    Source("sotu", "sotu.train.txt", NUM_WINDOWS, 100, at_most=True),
    Source("wikitext2", "wikitext2.validation.txt", NUM_WINDOWS, 101, at_most=True),
    Source("sanguo", "sanguo.train.txt", NUM_WINDOWS, 102, at_most=True),
    Source("shakespeare", "tinyshakespeare.txt", NUM_WINDOWS, 103, at_most=True),
    Source("code", "werkzeug==3.1.3", NUM_WINDOWS, 104, at_most=True),
]

if __name__ == "__main__":
    write(__doc__, SOURCES)
