"""The service: a spec in, a finished run out."""
