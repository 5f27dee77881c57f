"""A study's page and figures: records in, one HTML file out. No torch, no statistics."""

from nonlin.report.page import build

__all__ = ["build"]
