# SPDX-License-Identifier: Apache-2.0
"""The tables and figures by name: one file each, registered in EXPERIMENT_REGISTRY."""

from .base import EXPERIMENT_REGISTRY, Bar, Experiment, Section
from .curves import Curves
from .figure3 import Figure3
from .figure4 import Figure4
from .module_study import ModuleStudy
from .photos import PhotosRepair
from .population import PhotoPopulation, Population
from .table1 import Table1
from .table2 import Table2
from .table3 import Table3
from .unseen import UnseenTriggers

__all__ = [
    "EXPERIMENT_REGISTRY",
    "Bar",
    "Curves",
    "Experiment",
    "Figure3",
    "Figure4",
    "ModuleStudy",
    "PhotoPopulation",
    "PhotosRepair",
    "Population",
    "Section",
    "Table1",
    "Table2",
    "Table3",
    "UnseenTriggers",
]

# In the order of a report.
ALL = (
    "table1",
    "table2",
    "table3",
    "figure3",
    "figure4",
    "modules",
    "population",
    "unseen",
    "curves",
    "photos",
    "photos_population",
)
