"""Responses that are kept (spec 5.5)."""
