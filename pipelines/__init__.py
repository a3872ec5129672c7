"""The stages of `dvc repro`, each thin: read the parameters, call compress/ or registry/, write what came out."""
