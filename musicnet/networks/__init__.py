"""Everything with weights: observation -> image -> features -> pseudo-spectrum -> sources."""
