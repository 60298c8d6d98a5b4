"""Classical estimation: no weights, batched, on any device."""
