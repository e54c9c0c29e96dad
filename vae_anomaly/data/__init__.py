"""Readers: every file format comes out as the same :class:`Data`."""

from vae_anomaly.data.table import Data
from vae_anomaly.data.tabular import READERS, read

__all__ = ["READERS", "Data", "read"]
