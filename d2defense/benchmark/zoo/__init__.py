# SPDX-License-Identifier: Apache-2.0
"""A zoo: clean and backdoored detectors that a manifest describes, trained and measured."""
