"""Measurements that anyone can repeat; README.md says how."""

from __future__ import annotations
