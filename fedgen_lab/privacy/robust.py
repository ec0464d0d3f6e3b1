"""Robust averages, as lab 08 imports them: they stand in `fedgen_lab.federation.averages` beside all others."""

from fedgen_lab.federation.averages import combine, norm, robust_combine

__all__ = ["combine", "norm", "robust_combine"]
