"""Ray actors: thin shells around the pure rooms."""
