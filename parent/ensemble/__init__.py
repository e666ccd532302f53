"""Ensembles: models that have no code, but steps that are requests to other models (spec 5.4)."""
