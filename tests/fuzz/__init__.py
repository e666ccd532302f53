"""Fuzzing of what crosses a trust boundary: any bytes give a value, or an error of the kinds that are documented, in time and memory that
grow with their number. ``scripts/fuzz`` runs one target for as long as one likes; the tests replay the corpus, and mutations of it."""
