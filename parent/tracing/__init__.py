"""Traces: what happened to one request, and when, to a file or to OpenTelemetry (spec 6.10)."""
