"""One module a target runtime."""
