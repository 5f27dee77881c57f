"""Tests of nonlin.subject."""
