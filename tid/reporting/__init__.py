"""A run's own page: what it was, what it reached, what it dropped, what it cost."""
