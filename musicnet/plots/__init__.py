"""Pictures: spectra and error curves. They need matplotlib, the extra ``[plots]``."""
