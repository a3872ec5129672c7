"""How far apart two models of one recipe may come out when sums came in another order: the README states it."""

from compress.checkpoint.load import load_model
from compress.evaluate.compare import compare_models

LINEAR, MODEL = 0.06, 0.05  # relative: of a linear's output error, of the model's KL to its base


def divergences(base, one, other, tokens):
    """Mean KL of two model folders, `one` and `other`, to their base, and of the second to the first; nats a token."""
    models = {folder: load_model(folder) for folder in (base, one, other)}
    pairs = (one, base), (other, base), (other, one)
    return [compare_models(models[a], models[b], tokens).kl_nats.mean().item() for a, b in pairs]
