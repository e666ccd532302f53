"""Which requests go to which instance, and when (spec 5.4)."""
