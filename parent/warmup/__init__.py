"""What instances execute before they serve (spec 5.5)."""
