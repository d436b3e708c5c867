"""Environments: what answers a policy between its turns. See `ptjax.environments.base`."""

from ptjax.environments.tools import Tools

ENVIRONMENTS = {"tools": Tools}
"""Every environment by name."""
