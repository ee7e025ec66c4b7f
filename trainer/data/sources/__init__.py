"""Where examples come from, a file a kind."""
