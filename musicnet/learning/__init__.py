"""Where the harness meets the physics: module, data, losses, phases, evaluation."""
