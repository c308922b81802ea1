"""One trial, without Ray: data in, progress out."""
