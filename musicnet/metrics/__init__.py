"""How good an estimate is, as functions and as torchmetrics."""
