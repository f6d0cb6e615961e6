# SPDX-License-Identifier: Apache-2.0
"""d2defense finds backdoors in Detectron2 object detectors and removes them."""

__version__ = "0.1.0"
