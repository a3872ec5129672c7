"""The algorithms: torch in, torch out. Nothing here knows of DVC, MLflow, params.yaml or a command line."""
