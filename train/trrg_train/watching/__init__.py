"""Watching a run: what it logs, measures on held-out studies, shows as samples, and sums up at its end."""
