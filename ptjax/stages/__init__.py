"""What adds columns to a batch before the loss sees it."""

from ptjax.stages.base import Context, Stage

__all__ = ["Context", "Stage"]
