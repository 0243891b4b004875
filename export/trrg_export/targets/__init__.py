"""One module a target runtime; all have NAME, TARGET, unavailable_reason(), spec() and problems()."""
