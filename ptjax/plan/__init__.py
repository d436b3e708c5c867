"""What a run takes on devices that need not be there: `python -m ptjax.plan`."""
