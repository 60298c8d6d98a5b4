"""The picture that a module may give to its report."""

from lightning.pytorch import LightningModule

from callbacks.doctoring.undisturbed import undisturbed
from musicnet.diagnosis.report.page import Picture


def picture_of(module: LightningModule) -> Picture | None:
    """What `report_picture` of the module gives, drawn without a trace; None if it has none."""
    draw = getattr(module, "report_picture", None)
    if draw is None:
        return None
    with undisturbed(module):
        drawn = draw()
    return None if drawn is None else Picture(*drawn)
