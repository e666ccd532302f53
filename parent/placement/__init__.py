"""Which instances there are, and where they run (spec 5.3)."""
