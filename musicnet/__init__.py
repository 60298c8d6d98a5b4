"""Several sources from what an array or a surface hears, and training that cannot fail silently."""
