"""Rows of any form to packed batches: see `build`."""

from ptjax.data.columns import HostBatch
from ptjax.data.config import DataConfig, SourceConfig
from ptjax.data.pipeline import Pipeline, build

__all__ = ["DataConfig", "HostBatch", "Pipeline", "SourceConfig", "build"]
