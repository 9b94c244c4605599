"""Density estimators with the conventions of scikit-learn 1.6 or newer, which they need."""

from .models import DDPMDensity, DiffFlowDensity, DiNofDensity, NFDMDensity

__all__ = ["DDPMDensity", "DiNofDensity", "DiffFlowDensity", "NFDMDensity"]
