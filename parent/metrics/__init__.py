"""What the metrics port shows, and the metrics that models make themselves."""
