"""Supervision: instances that die, hang or grow old are replaced."""
