"""One self-contained page per run: `report.html`, without any network."""
