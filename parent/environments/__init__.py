"""Python environments that models ask for: found, unpacked or installed, and kept for the next start."""
