"""The sandbox of stubs: limits for each instance of a model, and another user."""
